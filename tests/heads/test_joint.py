"""Linear heads computed together, against their own modules one by one."""

import copy

import pytest
import torch

from siglip2_dense import FrozenEncoder, LinearHead
from siglip2_dense.heads.joining import join
from siglip2_dense.resample import resize_logits

NAFLEX = dict(sequence_length=24, model_args=dict(depth=4, embed_dim=48, num_heads=3))


@pytest.fixture(scope="module")
def vit():
    return FrozenEncoder("test_vit", weights="random")


@pytest.fixture(scope="module")
def cnn():
    return FrozenEncoder("tf_efficientnet_lite0", weights="random")


def images(count=3, size=(48, 80), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def plain(head, features):
    """What the head's modules say, in their order."""
    raw = head.conv(head.bn(join(features, head.taps, head.facts, head.stride, head.pooled == "concat")))
    return resize_logits(raw, [side * head.upsample for side in raw.shape[-2:]]) if head.upsample > 1 else raw


def disturbed(heads):
    """Heads whose affine parts and statistics are all their own."""
    torch.manual_seed(1)
    for head in heads:
        for name, tensor in head.state_dict().items():
            if tensor.is_floating_point():
                tensor += 0.1 * (torch.rand_like(tensor) if name.endswith("var") else torch.randn_like(tensor))
    return heads


SETTINGS = [
    dict(),
    dict(layers="last4", norm=False),
    dict(pooled="concat"),
    dict(layers=[1, 3, 5], pooled="concat"),
    dict(layers="last4", pooled="concat", batch_norm=False),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_maps_gradients_and_statistics_are_those_of_the_modules(vit, settings, training):
    heads = [LinearHead(vit.facts, k, upsample=up, **settings) for k, up in ((5, 1), (7, 2), (5, 1))]
    heads = [head.train(training) for head in disturbed(heads)]
    twins = copy.deepcopy(heads)
    for step in range(3):
        features = vit.features(images(seed=step), heads[0].taps, pooled=True)
        found, expected = LinearHead.together(heads, features), [plain(twin, features) for twin in twins]
        weights = [torch.randn_like(raw) for raw in found]
        for raw, wanted in zip(found, expected, strict=True):
            assert raw.dtype == torch.float32 and (raw - wanted).abs().max() < 1e-5
        for raws in (found, expected):
            sum((raw * weight).sum() for raw, weight in zip(raws, weights, strict=True)).backward()
    for head, twin in zip(heads, twins, strict=True):
        for (name, own), its in zip(head.named_parameters(), twin.parameters(), strict=True):
            assert (own.grad - its.grad).abs().max() < 1e-5 * its.grad.abs().max(), name
        for (name, own), its in zip(head.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(own, its, rtol=1e-6, atol=1e-7, msg=name)


def test_strides_are_joined_and_a_batch_of_one_has_a_vector(cnn):
    heads = disturbed([LinearHead(cnn.facts, 3, layers=[2, 3, 4], stride=16, pooled="concat") for _ in range(2)])
    features = cnn.features(images(1), heads[0].taps, pooled=True)
    twins = copy.deepcopy(heads)
    for raw, twin in zip(LinearHead.together(heads, features), twins, strict=True):
        torch.testing.assert_close(raw, plain(twin, features), rtol=0, atol=3e-4)
    for own, its in zip(heads[1].buffers(), twins[1].buffers(), strict=True):
        torch.testing.assert_close(own, its, rtol=1e-5, atol=1e-6)


def test_images_with_cells_of_their_own():
    encoder = FrozenEncoder("siglip2-base-16-naflex", "random", **NAFLEX)
    heads = disturbed([LinearHead(encoder.facts, k, pooled="concat", upsample=k - 1) for k in (2, 3)])
    twins = copy.deepcopy(heads)
    features = encoder.features([images(1, size)[0] for size in ((100, 70), (64, 64), (40, 123))], pooled=True)
    for raw, twin in zip(LinearHead.together(heads, features), twins, strict=True):
        assert torch.allclose(raw, twin(features), atol=1e-5)
    for own, its in zip(heads[0].buffers(), twins[0].buffers(), strict=True):
        torch.testing.assert_close(own, its, rtol=1e-6, atol=1e-7)


def test_in_bfloat16_they_are_as_close_as_bfloat16_is(vit):
    heads = disturbed([LinearHead(vit.facts, 5, layers="last4", pooled="concat") for _ in range(2)])
    features = vit.features(images(), heads[0].taps, pooled=True)
    exact = copy.deepcopy(heads)
    with torch.autocast("cpu", torch.bfloat16):
        found = LinearHead.together(heads, features)
    expected = [plain(twin, features) for twin in exact]
    for raw, wanted in zip(found, expected, strict=True):
        assert raw.dtype == torch.float32 and not torch.equal(raw, wanted)
        assert (raw - wanted).abs().max() < 0.02 * wanted.abs().max()
    for raws in (found, expected):
        sum(raw.square().mean() for raw in raws).backward()
    for head, twin in zip(heads, exact, strict=True):
        for (name, own), its in zip(head.named_parameters(), twin.parameters(), strict=True):
            assert (own.grad - its.grad).abs().max() < 0.03 * its.grad.abs().max(), name


def test_an_encoder_that_trains_gets_the_gradient_of_the_statistics_too(vit):
    heads = disturbed([LinearHead(vit.facts, 5, pooled="concat") for _ in range(2)])
    features = vit.features(images(), heads[0].taps, pooled=True)
    gradients = []
    for function in (lambda: LinearHead.together(heads, features), lambda: [plain(head, features) for head in heads]):
        inputs = [*features.maps.values(), *features.prefix.values()]
        for tensor in inputs:
            tensor.requires_grad_().grad = None
        sum(raw.square().mean() for raw in function()).backward()
        gradients.append([tensor.grad.clone() for tensor in inputs])
    for own, its in zip(*gradients, strict=True):
        assert its.abs().max() > 0 and (own - its).abs().max() < 1e-5 * its.abs().max()


def test_heads_are_kin_when_they_see_the_same(vit):
    first = LinearHead(vit.facts, 5)
    assert first.kin == LinearHead(vit.facts, 7, upsample=4).kin
    others = [dict(layers="last4"), dict(norm=False), dict(pooled="concat"), dict(batch_norm=False)]
    others = [LinearHead(vit.facts, 5, **settings) for settings in others] + [copy.deepcopy(first).eval()]
    assert len({head.kin for head in (first, *others)}) == 6
