"""The frozen encoder against bare timm models, and its promise to stay frozen."""

import copy

import pytest
import timm
import torch
from torch import nn

from siglip2_dense import FrozenEncoder
from siglip2_dense.contracts import Tap
from siglip2_dense.encoders.weights import fingerprint
from siglip2_dense.errors import UserError


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalised(encoder, batch):
    config = timm.data.resolve_model_data_config(encoder.tower)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (batch.float() / 255 - mean) / std


# a SigLIP, a CLIP tower with class token, registers, no class token, norm behind the pooling, rotary positions, CNNs
FAMILIES = ["test_vit", "test_vit2", "test_vit3", "test_vit4", "vit_tiny_patch16_224"]
LARGE = {
    "siglip2-base-16-256": dict(depth=2),
    "clip-base-16-224": dict(depth=2),
    "dinov2-small-14-reg": dict(depth=2),
    "eva02_base_patch16_clip_224": dict(depth=2),
    "vit_small_patch16_dinov3": dict(depth=2),
    "aimv2-large-14-224": dict(depth=1),
}


@pytest.mark.parametrize("name", [*FAMILIES, *LARGE])
def test_equals_the_bare_timm_model(name):
    """Last map, prefix tokens and pooled vector at a non-square size, batch of one."""
    encoder = FrozenEncoder(name, weights="random", model_args=LARGE.get(name))
    side = encoder.patch_size
    batch = images(1, 3, 7 * side, 10 * side)
    with torch.no_grad():
        tokens = encoder.tower.forward_features(normalised(encoder, batch))
        pooled = encoder.tower.forward_head(tokens, pre_logits=True)
    tap = encoder.facts.taps("last", True)[0]
    features = encoder.features(batch, [tap], pooled=True)
    count = len(encoder.facts.prefix)
    if encoder.tower.norm is not encoder._final_norm:  # timm leaves its norm to the pooling there
        tokens = encoder._final_norm(tokens)
    expected = tokens[:, count:].transpose(1, 2).reshape(1, -1, 7, 10)
    assert (features.maps[tap] - expected).abs().max() < 1e-5
    if count:
        assert (features.prefix[tap] - tokens[:, :count]).abs().max() < 1e-5
    if encoder.facts.pooled == "class":
        assert (features.pooled - tokens[:, encoder.facts.prefix.index("class")]).abs().max() < 1e-5
    else:
        assert (features.pooled - pooled).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["cradiov3-base-16-512", "pespatial-tiny-16-512"])
def test_the_class_token_of_a_tower_without_a_final_norm(name):
    encoder = FrozenEncoder(name, weights="random", model_args=dict(depth=2, embed_dim=64, num_heads=2))
    assert not encoder.facts.final_norm and encoder.facts.pooled == "class"
    (tap,) = encoder.taps
    features = encoder.features(images(1, 3, 48, 80), pooled=True)
    assert torch.equal(features.pooled, features.prefix[tap][:, 0])


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "tf_efficientnet_lite0"])
def test_convolutional_maps_at_their_strides(name):
    encoder = FrozenEncoder(name, weights="random", layers="even4")
    batch = images(2, 3, 64, 96)
    seen = {}
    for tap in encoder.taps:
        module = encoder.tower.get_submodule(encoder.tower.feature_info[tap.block]["module"])
        module.register_forward_hook(lambda m, i, output, block=tap.block: seen.setdefault(block, output))
    with torch.no_grad():
        encoder.tower.forward_features(normalised(encoder, batch))
    expected = [seen.pop(tap.block) for tap in encoder.taps]
    for tap, found, wanted in zip(encoder.taps, encoder(batch), expected, strict=True):
        assert found.shape[-1] * encoder.facts.strides[tap.block] == 96
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert encoder.out_channels == [x.shape[1] for x in expected]


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "tf_efficientnet_lite0", "fastvit_t8"])
@pytest.mark.parametrize("batch", [images(1, 3, 64, 96), images(3, 3, 70, 33)])
def test_convolutions_have_their_channels_last_and_give_the_same(name, batch):
    encoder = FrozenEncoder(name, weights="random", layers="even4")
    plain = copy.deepcopy(encoder.tower).to(memory_format=torch.contiguous_format)
    pixels = encoder._pixels(batch, None)[0].contiguous()
    with torch.no_grad():
        expected = plain.forward_intermediates(
            pixels, indices=[tap.block for tap in encoder.taps], intermediates_only=True
        )
    kernels = [weight for weight in encoder.tower.parameters() if weight.dim() == 4 and min(weight.shape[1:]) > 1]
    assert kernels and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    for found, wanted in zip(encoder(batch), expected, strict=True):
        assert found.is_contiguous(memory_format=torch.channels_last)  # as the maps of transformers are
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert fingerprint(encoder.tower) == fingerprint(plain) == encoder.fingerprint
    assert encoder.to(torch.float64).features(batch).pooled is None
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


def test_one_pass_serves_taps_with_and_without_norm():
    encoder = FrozenEncoder("test_vit", weights="random")
    batch = images(2, 3, 160, 160)
    taps = [Tap(1, False), Tap(1, True), Tap(5, True), Tap(5, False)]
    together = encoder.features(batch, taps)
    for tap in taps:
        assert torch.equal(together.maps[tap], encoder.features(batch, [tap]).maps[tap])
    raw = together.maps[Tap(1, False)]
    assert torch.allclose(together.maps[Tap(1, True)], encoder.tower.norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    calls = []
    encoder.tower.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    encoder.features(batch, taps, pooled=True)
    assert len(calls) == 1


def test_blocks_behind_the_last_tap_are_not_run():
    encoder = FrozenEncoder("test_vit", weights="random")
    encoder.tower.blocks[3].register_forward_hook(lambda *_: pytest.fail("block 3 was run for block 2"))
    encoder.features(images(1, 3, 32, 32), [Tap(2, True)])


@pytest.mark.parametrize(
    ("depth", "last", "last4", "even4"),
    [
        (12, (11,), (8, 9, 10, 11), (2, 5, 8, 11)),
        (24, (23,), (20, 21, 22, 23), (5, 11, 17, 23)),
        (27, (26,), (23, 24, 25, 26), (6, 13, 20, 26)),
        (32, (31,), (28, 29, 30, 31), (7, 15, 23, 31)),
        (40, (39,), (36, 37, 38, 39), (9, 19, 29, 39)),
        (3, (2,), (0, 1, 2), (0, 1, 2)),
    ],
)
def test_layers_by_rule(depth, last, last4, even4):
    facts = FrozenEncoder("test_vit", weights="random").facts
    facts = type(facts)(**{**facts.to_dict(), "widths": (64,) * depth, "strides": (16,) * depth})
    assert (facts.blocks("last"), facts.blocks("last4"), facts.blocks("even4")) == (last, last4, even4)
    for wrong in ([1, 0], [0, 0], [depth], [-1], "first", []):
        with pytest.raises(UserError, match="layers="):
            facts.blocks(wrong)


@pytest.mark.parametrize("size", [(16, 16), (1024, 1024), (2048, 96)])
def test_small_and_large_images(size):
    encoder = FrozenEncoder("test_vit", weights="random")
    (found,) = encoder(images(1, 3, *size))
    assert found.shape[-2:] == (size[0] // 16, size[1] // 16) and found.isfinite().all()


@pytest.mark.parametrize("height", [16, 17, 31, 33, 160])
@pytest.mark.parametrize("width", [16, 30, 161])
def test_any_size_is_padded_to_the_smallest_multiple_with_the_mean_colour(height, width):
    encoder = FrozenEncoder("test_vit", weights="random")
    batch = images(1, 3, height, width)
    features = encoder.features(batch)
    geometry = features.geometry[0]
    assert all(0 <= padded - side < 16 for padded, side in zip(geometry.padded, (height, width), strict=True))
    top, left, *_ = geometry.box
    by_hand = torch.zeros(1, 3, *geometry.padded)
    by_hand[:, :, top : top + height, left : left + width] = normalised(encoder, batch)
    with torch.no_grad():
        expected = encoder.tower.forward_features(by_hand)[:, 1:]
    found = features.maps[encoder.taps[0]].flatten(2).transpose(1, 2)
    assert (found - expected).abs().max() < 1e-5
    assert top == (geometry.padded[0] - height) // 2


def test_images_of_several_sizes_on_one_canvas_equal_each_alone():
    encoder = FrozenEncoder("test_vit", weights="random")
    several = [images(3, 40, 64), images(3, 57, 31, seed=1)]
    together = encoder.features(several, canvas=(64, 70))
    assert together.geometry[0].padded == (64, 80)
    for place, image in enumerate(several):
        alone = encoder.features([image], canvas=(64, 70))
        assert torch.allclose(together.maps[encoder.taps[0]][place], alone.maps[encoder.taps[0]][0], atol=1e-5)
        assert together.geometry[place] == alone.geometry[0]
    with pytest.raises(UserError, match="does not fit"):
        encoder.features(several, canvas=(32, 80))


def test_position_table_is_resampled_from_the_stored_one_once_per_grid(monkeypatch):
    encoder = FrozenEncoder("test_vit", weights="random")
    stored = encoder.tower.pos_embed.clone()
    calls = []
    import siglip2_dense.encoders.frozen as module

    original = module.resize_positions
    monkeypatch.setattr(module, "resize_positions", lambda *a: calls.append(a[2]) or original(*a))
    small, large = images(1, 3, 48, 80), images(1, 3, 208, 160)
    first = encoder(small)[0]
    encoder(large)
    assert torch.equal(encoder(small)[0], first)
    assert calls == [(3, 5), (13, 10)]
    assert torch.equal(encoder.tower.pos_embed, stored) and encoder.tower.patch_embed.grid_size == (10, 10)
    encoder.to(torch.float64)
    assert encoder(small)[0].shape == first.shape and len(calls) == 3


def test_red_and_grey_reach_each_encoder_as_its_own_statistics_say():
    red = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    red[:, 0] = 255
    siglip = FrozenEncoder("siglip2-base-16-256", "random", model_args=dict(depth=1))
    clip = FrozenEncoder("clip-base-16-224", "random", model_args=dict(depth=1))
    assert torch.allclose(siglip._pixels(red, None)[0][0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
    found = clip._pixels(red, None)[0][0, :, 0, 0]
    expected = torch.tensor([(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711])
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(siglip(red)[0], siglip(red.float())[0])


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_vit3"])
def test_frozen_by_construction(name):
    encoder = FrozenEncoder(name, weights="random")
    parent = nn.Sequential(encoder, nn.Conv2d(encoder.width, 2, 1))
    assert not list(encoder.parameters()) and len(list(encoder.modules())) == 1
    assert len(list(parent.parameters())) == 2
    assert set(parent.state_dict()) == {"1.weight", "1.bias"}
    before = fingerprint(encoder.tower)
    parent.train()
    parent.requires_grad_(True)
    batch = images(2, 3, 64, 64)
    assert not encoder.training and not any(m.training for m in encoder.tower.modules())
    first, second = encoder(batch)[0], encoder(batch)[0]
    assert torch.equal(first, second) and not first.requires_grad
    parent[1](first).sum().backward()  # features can be trained on
    assert fingerprint(encoder.tower) == before == encoder.fingerprint


def test_survives_the_initialisation_of_mmengine():
    from mmengine.model import BaseModel

    class Toy(BaseModel):
        def __init__(self):
            super().__init__()
            self.encoder = FrozenEncoder("test_vit", weights="random")

        def forward(self, inputs, data_samples=None, mode="tensor"):
            return self.encoder(inputs)

    model = Toy()
    before = fingerprint(model.encoder.tower)
    model.init_weights()
    assert fingerprint(model.encoder.tower) == before


def test_moves_copies_and_pickles_as_a_whole(tmp_path):
    encoder = FrozenEncoder("test_vit", weights="random")
    twin = copy.deepcopy(encoder).to(torch.float64)
    assert twin.tower.pos_embed.dtype == torch.float64 and encoder.tower.pos_embed.dtype == torch.float32
    torch.save(encoder, tmp_path / "encoder.pt")
    again = torch.load(tmp_path / "encoder.pt", weights_only=False)
    batch = images(1, 3, 48, 48)
    assert torch.equal(again(batch)[0], encoder(batch)[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_comes_out_in_float32(precision):
    exact = FrozenEncoder("test_vit", weights="random")
    half = FrozenEncoder("test_vit", weights="random", precision=precision)
    batch = images(1, 3, 96, 64)
    found, expected = half(batch)[0], exact(batch)[0]
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.1


def test_pooled_concatenated_for_other_frameworks():
    encoder = FrozenEncoder("test_vit3", weights="random", layers="even4", pooled="concat")
    maps = encoder(images(2, 3, 32, 48))
    assert [x.shape[1] for x in maps] == encoder.out_channels == [192] * 4
    assert torch.equal(maps[0][:, 96:, 0, 0], maps[3][:, 96:, 1, 2])


def test_compiled_equals_plain():
    batch = images(1, 3, 48, 64)
    plain = FrozenEncoder("test_vit", weights="random", model_args=dict(depth=1))
    compiled = FrozenEncoder("test_vit", weights="random", compile=True, model_args=dict(depth=1))
    assert (compiled(batch)[0] - plain(batch)[0]).abs().max() < 1e-4


def test_an_encoder_of_fixed_size_says_so():
    with pytest.raises(UserError, match="cannot take images of 224x224"):
        FrozenEncoder("test_vit_relpos", weights="random").features(images(1, 3, 224, 224))
    with pytest.raises(UserError, match="sequence_length=256: test_vit is no NaFlex encoder"):
        FrozenEncoder("test_vit", weights="random", sequence_length=256)
    with pytest.raises(UserError, match="precision='int8'"):
        FrozenEncoder("test_vit", weights="random", precision="int8")
    with pytest.raises(UserError, match="model_args"):
        FrozenEncoder("test_vit", weights="random", model_args=dict(deepness=3))


def test_positions_are_resampled_without_antialiasing_where_that_is_asked_for():
    """As CAT-Seg's copy of CLIP does; the two kernels differ where the grid grows, too."""
    name, args = "vit_base_patch16_clip_224.openai", dict(depth=1, embed_dim=16, num_heads=2)
    plain, other = (FrozenEncoder(name, "random", model_args=args, position_kernel=k) for k in (None, "bicubic"))
    assert (plain.facts.position_kernel, other.facts.position_kernel) == ("bicubic, antialias", "bicubic")
    images = torch.randint(0, 256, (1, 3, 384, 320), dtype=torch.uint8)
    table = other.tower.pos_embed.detach().clone()
    grid = table[:, 1:].reshape(1, 14, 14, 16).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (24, 20), mode="bicubic", align_corners=False)
    expected = torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    features = other.features(images)
    assert torch.allclose(other._tables[24, 20], expected, atol=1e-6)
    (a,), (b,) = features.maps.values(), plain.features(images).maps.values()
    assert (a - b).abs().max() > 1e-4
    native = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    (a,), (b,) = other.features(native).maps.values(), plain.features(native).maps.values()
    assert torch.equal(a, b) and torch.equal(other.tower.pos_embed, table)
    trained = FrozenEncoder(name, "random", model_args=args, position_kernel="bicubic", trainable=["positions"])
    (a,), (b,) = trained.features(images).maps.values(), features.maps.values()
    assert torch.allclose(a, b, atol=1e-5) and a.requires_grad
    for wrong, encoder in (("bilinear", name), ("bicubic", "test_convnext"), ("bicubic", "vit_small_patch16_dinov3")):
        with pytest.raises(UserError, match=f"position_kernel='{wrong}': give 'bicubic'"):
            FrozenEncoder(encoder, "random", position_kernel=wrong)
