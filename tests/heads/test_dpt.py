"""The DPT heads against their published order of operations, written out."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense import FrozenEncoder
from siglip2_dense.contracts import Features, Geometry
from siglip2_dense.errors import UserError
from siglip2_dense.heads import DPTHead, LinearHead, Probe3DHead
from siglip2_dense.resample import stretch_features

CONVOLUTIONAL = ["tf_efficientnet_lite0", "resnet18", "test_convnext"]


@cache
def encoder_of(name):
    return FrozenEncoder(name, weights="random")


@pytest.fixture(scope="module")
def vit():
    return encoder_of("test_vit").facts


def made(facts, head, grid, batch=2):
    """Random features of a plain transformer on a grid."""
    generator = torch.Generator().manual_seed(grid[0] * 100 + grid[1])
    size = tuple(side * facts.strides[-1] for side in grid)
    return Features(
        maps={tap: torch.randn(batch, facts.widths[tap.block], *grid, generator=generator) for tap in head.taps},
        geometry=(Geometry(size, (0, 0, *size), size, size, size),) * batch,
        prefix={
            tap: torch.randn(batch, len(facts.prefix), facts.widths[tap.block], generator=generator)
            for tap in head.taps
        }
        if facts.prefix
        else None,
        pooled=torch.randn(batch, facts.pooled_width, generator=generator),
    )


def randomised(head):
    torch.manual_seed(1)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else (2 / parameter[0].numel()) ** 0.5)
    return head


def bilinear(x, corners, **size):
    return F.interpolate(x, mode="bilinear", align_corners=corners, **size)


def literal_dpt(head, seen, vectors, gelu, relu_after, convolutions):
    """TIPS's decoder and DINOv2's, step by step."""
    p = head.state_dict()

    def conv(x, name, **how):
        return F.conv2d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), **how)

    def unit(x, name):
        y = conv(F.relu(x), f"{name}.first", padding=1)
        return conv(F.relu(y), f"{name}.second", padding=1) + x

    pyramid = []
    for i, (tap, vector) in enumerate(zip(head.taps, vectors, strict=True)):
        x = seen.maps[tap]
        b, c, h, w = x.shape
        if vector is not None:
            both = torch.cat([x.flatten(2).transpose(1, 2), vector[:, None].expand(-1, h * w, -1)], -1)
            both = F.linear(both, p[f"levels.{i}.readout.weight"], p[f"levels.{i}.readout.bias"])
            x = F.gelu(both, approximate=gelu).transpose(1, 2).reshape(b, c, h, w)
        x = conv(x, f"levels.{i}.project")
        assert x.shape[1] == c // (8, 4, 2, 1)[i]
        name = f"levels.{i}.resize"
        if i < 2:
            x = F.conv_transpose2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=(4, 2)[i])
        if i == 3:
            x = conv(x, name, stride=2, padding=1)
        pyramid.append(conv(x, f"levels.{i}.reduce", padding=1))
    x = pyramid[3]
    for number in range(4):
        if number:
            skip = pyramid[3 - number]
            if skip.shape != x.shape:
                skip = bilinear(skip, False, size=x.shape[2:])
            x = x + unit(skip, f"fusion.{number}.skip")
        x = bilinear(unit(x, f"fusion.{number}.unit"), True, scale_factor=2)
        x = conv(x, f"fusion.{number}.out")
    x = conv(x, "project", padding=1)
    if relu_after:
        x = F.relu(x)
    if convolutions:
        x = bilinear(conv(x, "refine.0", padding=1), True, scale_factor=2)
        x = F.relu(conv(x, "refine.1", padding=1))
    return conv(x, "output")


def assert_equal(raw, expected):
    assert raw.shape == expected.shape
    assert (raw - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("grid", [(3, 5), (4, 2), (1, 1)])
def test_tips_form(vit, grid):
    head = randomised(DPTHead(vit, 5, width=24))
    seen = made(vit, head, grid)
    vectors = [seen.prefix[tap][:, 0] for tap in head.taps]
    raw = head(seen)
    assert raw.shape[2:] == tuple(8 * (side + side % 2) for side in grid)
    assert_equal(raw, literal_dpt(head, seen, vectors, "tanh", relu_after=False, convolutions=False))


def test_dinov2_form(vit):
    head = DPTHead(vit, 1, norm=False, width=24, activation="relu", gelu="exact", output="convolutions")
    seen = made(vit, randomised(head), (2, 3), batch=1)
    vectors = [seen.prefix[tap][:, 0] for tap in head.taps]
    raw = head(seen)
    assert raw.shape == (1, 1, 32, 64)
    assert_equal(raw, literal_dpt(head, seen, vectors, "none", relu_after=True, convolutions=True))
    assert (raw - literal_dpt(head, seen, vectors, "tanh", True, True)).abs().max() > 1e-5 * raw.abs().max()


def test_without_readout_and_with_the_encoders_own_vector(vit):
    """Register tokens are no class token: the encoder's vector is at every tap."""
    head = randomised(DPTHead(vit, 3, pooled="none", width=16))
    seen = made(vit, head, (3, 2))
    assert_equal(head(seen), literal_dpt(head, seen, [None] * 4, "tanh", False, False))
    other = replace(vit, prefix=("register",), pooled_width=10)
    head = randomised(DPTHead(other, 3, width=16))
    seen = made(other, head, (3, 2))
    assert_equal(head(seen), literal_dpt(head, seen, [seen.pooled] * 4, "tanh", False, False))


def test_an_odd_grid_is_made_even(vit):
    head = DPTHead(vit, 2, width=8).eval()
    assert head(made(vit, head, (27, 4), batch=1)).shape == (1, 2, 224, 32)


def test_stride_names_another_base_grid(vit):
    """The maps are brought to it first."""
    head = randomised(DPTHead(vit, 2, width=8, stride=8))
    seen = made(vit, head, (2, 3))
    finer = replace(seen, maps={tap: bilinear(x, False, scale_factor=2) for tap, x in seen.maps.items()})
    vectors = [seen.prefix[tap][:, 0] for tap in head.taps]
    assert_equal(head(seen), literal_dpt(head, finer, vectors, "tanh", False, False))


def test_probe3d_in_the_published_order(vit):
    head = randomised(Probe3DHead(vit, 4, layers=[0, 2, 3, 5], width=24))
    assert [tap.norm for tap in head.taps] == [False] * 4
    seen = made(vit, head, (3, 5))
    before = {tap: values.clone() for tap, values in seen.maps.items()}
    raw = head(seen)
    assert all(torch.equal(seen.maps[tap], before[tap]) for tap in head.taps)
    p = head.state_dict()

    def conv(x, name):
        weight = p[f"{name}.weight"]
        return F.conv2d(x, weight, p[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def unit(x, name):
        return F.relu(conv(F.relu(conv(x, f"{name}.first")), f"{name}.second")) + x

    maps = [bilinear(conv(seen.maps[tap], f"reduce.{i}"), True, scale_factor=2) for i, tap in enumerate(head.taps)]
    x = unit(maps[3], "units.3")
    x = unit(unit(maps[2], "skips.2") + x, "units.2")
    x = unit(unit(maps[1], "skips.1") + x, "units.1")
    x = unit(unit(maps[0], "skips.0") + x, "units.0")
    x = conv(F.relu(conv(bilinear(x, True, scale_factor=4), "hidden")), "output")
    assert_equal(raw, bilinear(x, True, scale_factor=2))
    assert raw.shape == (2, 4, 48, 80)


def test_probe3d_with_the_class_token_behind_each_map(vit):
    head = Probe3DHead(vit, 3, pooled="concat", width=8)
    seen = made(vit, head, (2, 2))
    raw = head(seen)
    assert head.reduce[0].in_channels == 128
    for tap in head.taps:
        changed = replace(seen, prefix={**seen.prefix, tap: seen.prefix[tap] + 1})
        assert (head(changed) - raw).abs().max() > 1e-6


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_pyramid_keeps_its_levels(name):
    encoder = encoder_of(name)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    head = randomised(DPTHead(encoder.facts, 3, width=16))
    assert head.stride == 16 and head.pooled == "readout"
    seen = encoder.features(images, head.taps, pooled=True)
    inputs = {}
    for number, level in enumerate(head.levels):
        level.reduce.register_forward_hook(lambda _, x, y, number=number: inputs.update({number: x[0]}))
    raw = head(seen)
    assert raw.shape == (2, 3, 32, 48) and raw.isfinite().all()
    assert [tuple(inputs[i].shape[2:]) for i in range(4)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for number, tap in enumerate(head.taps):  # what stands on its level already is not interpolated
        assert inputs[number].shape == seen.maps[tap].shape
        joined = torch.cat([seen.maps[tap], seen.pooled[:, :, None, None].expand(-1, -1, *seen.maps[tap].shape[2:])], 1)
        readout, project = head.levels[number].readout, head.levels[number].project
        read = F.gelu(readout(joined.permute(0, 2, 3, 1)), approximate="tanh").permute(0, 3, 1, 2)
        assert_equal(inputs[number], project(read))
    assert (head(replace(seen, pooled=seen.pooled + 1)) - raw).abs().max() > 1e-4
    probe = Probe3DHead(encoder.facts, 3, width=16)
    assert probe.stride == 16 and probe(encoder.features(images, probe.taps)).shape == (2, 3, 64, 96)


def test_levels_of_a_coarser_pyramid_are_interpolated():
    facts = encoder_of("resnet18").facts
    head = DPTHead(facts, 2, layers=[0, 1, 2, 3], width=8, stride=32, pooled="none")
    assert head.stride == 32 and DPTHead(facts, 2, layers=[0, 1, 2, 3], width=8).stride == 8
    maps = {tap: torch.randn(1, facts.widths[tap.block], 64 // 2 ** (i + 1), 32 // 2 ** (i + 1))
            for i, tap in enumerate(head.taps)}  # fmt: skip
    size = (64, 32)
    assert head(Features(maps, (Geometry(size, (0, 0, *size), size, size, size),))).shape == (1, 2, 16, 16)
    with pytest.raises(UserError, match="stride=24 does not divide 32"):
        DPTHead(facts, 2, stride=24)


@pytest.mark.parametrize("head", [DPTHead, Probe3DHead])
def test_four_maps_or_a_sentence(vit, head):
    shallow = replace(vit, name="shallow", widths=(64,) * 3, strides=(16,) * 3)
    with pytest.raises(UserError, match=r"names 3 of the 3 blocks of shallow; .* LinearHead"):
        head(shallow, 2)
    with pytest.raises(UserError, match="'last' names 1"):
        head(vit, 2, layers="last")
    with pytest.raises(UserError, match="pooled='sum'; give 'none' or"):
        head(vit, 2, pooled="sum")


@pytest.mark.parametrize("setting", [dict(activation="gelu"), dict(gelu="none"), dict(output="conv")])
def test_settings_are_known_ones(vit, setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        DPTHead(vit, 2, **setting)


@pytest.mark.parametrize(
    "build",
    [
        lambda facts: DPTHead(facts, 3, width=16),
        lambda facts: DPTHead(facts, 1, width=16, activation="relu", output="convolutions"),
        lambda facts: Probe3DHead(facts, 3, width=16),
    ],
)
def test_float32_under_autocast_and_a_gradient_for_each_parameter(vit, build):
    """A parameter without a gradient stops training on several GPUs."""
    torch.manual_seed(0)
    head = build(vit)
    seen = made(vit, head, (3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        raw = head(seen)
    assert raw.dtype == torch.float32
    exact = head(seen)
    assert (raw - exact).abs().max() < 0.05 * exact.abs().max()
    (exact - 1).square().mean().backward()
    silent = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not silent


@pytest.mark.parametrize("cls", [DPTHead, Probe3DHead])
def test_starts_unsure_of_nothing_whatever_the_size_of_the_features(vit, cls):
    """A normals head whose uncertainty begins far below 0 ends where its gradient vanishes: all directions alike."""
    torch.manual_seed(0)
    head = cls(vit, 4, width=64)
    seen = made(vit, head, (4, 5))
    seen = replace(seen, maps={tap: 5 * values for tap, values in seen.maps.items()})
    assert head(seen).abs().max() < 3 and head(seen).std() > 0.01


def test_starts_with_outputs_of_a_tenth_of_its_inputs():
    for name in ("test_vit", *CONVOLUTIONAL):
        encoder = encoder_of(name)
        torch.manual_seed(0)
        head = DPTHead(encoder.facts, 32, width=64)
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        seen = encoder.features(images, head.taps, pooled=True)
        largest = max(values.std() for values in seen.maps.values())
        assert 0.01 * largest < head(seen).std() < largest


def test_stretching_keeps_the_corners():
    row = torch.tensor([[[[0.0, 1.0]]]])
    assert torch.allclose(stretch_features(row, 2)[0, 0], torch.tensor([[0, 1 / 3, 2 / 3, 1]] * 2))


def test_registered_by_name(vit):
    from siglip2_dense.registry import MODELS, build

    for cls in (DPTHead, Probe3DHead, LinearHead):
        assert type(build(MODELS, dict(type=cls.__name__), facts=vit, channels=2)) is cls
