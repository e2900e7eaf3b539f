"""Heads on images with cells of their own: what stands between the images is not read, nor does it count."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import EncoderFacts, Features, Geometry
from siglip2_dense.errors import UserError
from siglip2_dense.heads import DPTHead, LinearHead, MMSegHead, Probe3DHead
from siglip2_dense.heads.joining import own_cells

FACTS = EncoderFacts(
    name="naflex", fingerprint="", widths=(24,) * 6, strides=(16,) * 6, prefix=(), pooled="map", pooled_width=24,
    final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=(16, 16), position_kernel=None, parameters=0,
)  # fmt: skip
GRIDS = [(5, 4), (2, 9), (5, 4), (7, 3)]  # two of one shape, but not side by side
NAN = float("nan")

HEADS = {
    "linear": lambda: LinearHead(FACTS, 5),
    "linear of four taps, in the depth form": lambda: LinearHead(
        FACTS, 5, "even4", norm=False, pooled="concat", batch_norm=False, upsample=4
    ),
    "linear at a finer stride": lambda: LinearHead(FACTS, 5, "last4", stride=8, upsample=2),
    "DPT": lambda: DPTHead(FACTS, 5, width=16),
    "DPT with convolutions": lambda: DPTHead(FACTS, 1, width=16, pooled="none", output="convolutions"),
    "DPT at a finer stride": lambda: DPTHead(FACTS, 2, width=16, stride=8),
    "probe3d": lambda: Probe3DHead(FACTS, 4, width=16, pooled="concat"),
}


def features(head, grids=GRIDS, padding=NAN):
    """Random features, each image in the corner of the common grid and ``padding`` beside it."""
    generator = torch.Generator().manual_seed(0)
    canvas = tuple(max(side) for side in zip(*grids, strict=True))
    padded = tuple(16 * side for side in canvas)
    valid = torch.zeros(len(grids), *canvas, dtype=torch.bool)
    geometry = []
    for number, (h, w) in enumerate(grids):
        valid[number, :h, :w] = True
        geometry.append(Geometry(padded, (0, 0, 16 * h, 16 * w), padded, (100 * h, 70 * w), (100 * h, 70 * w)))
    maps = {tap: torch.randn(len(grids), 24, *canvas, generator=generator) + 0.5 for tap in head.taps}
    maps = {tap: values.masked_fill(~valid[:, None], padding) for tap, values in maps.items()}
    pooled = torch.randn(len(grids), 24, generator=generator)
    return Features(maps, tuple(geometry), pooled=pooled, valid=valid)


def cropped(seen, number):
    """Features of one image's own cells, as of an encoder that saw only it and knows of no padding."""
    (h, w), place = GRIDS[number], seen.geometry[number]
    size = place.box[2:]
    return Features(
        maps={tap: values[number : number + 1, :, :h, :w] for tap, values in seen.maps.items()},
        geometry=(replace(place, padded=size, canvas=size),),
        pooled=seen.pooled[number : number + 1],
    )


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(1)
    head = HEADS[request.param]()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else (2 / parameter[0].numel()) ** 0.5)
    if isinstance(getattr(head, "bn", None), torch.nn.BatchNorm2d):
        head.bn.running_mean.normal_()
        head.bn.running_var.uniform_(0.5, 2)
    return head.eval()


def test_each_image_has_what_it_has_alone(head):
    seen = features(head)
    raw = head(seen)
    finer = raw.shape[-1] // 9
    assert raw.shape == (4, raw.shape[1], 7 * finer, 9 * finer)
    for number, (h, w) in enumerate(GRIDS):
        own, single = raw[number, :, : finer * h, : finer * w], cropped(seen, number)
        alone = head(single)[0]
        if alone.shape != own.shape:  # DPT makes odd grids even
            assert isinstance(head, DPTHead)
            alone = F.interpolate(alone[None], own.shape[1:], mode="bilinear")[0]
        assert own.std() > 0.01 and (own - alone).abs().max() < 1e-5 * max(1, alone.abs().max())
        single.valid = torch.ones(1, h, w, dtype=torch.bool)
        assert (head(single)[0] - own).abs().max() < 1e-5 * max(1, alone.abs().max())
        assert not raw[number, :, finer * h :].any() and not raw[number, :, :, finer * w :].any()


def test_a_batch_of_one_shape_is_run_at_once(head, monkeypatch):
    seen = features(head, [(4, 6)] * 3)
    calls, product = [], F.linear
    if isinstance(head, LinearHead):
        monkeypatch.setattr(F, "linear", lambda *given: calls.append(1) or product(*given))
    else:
        head.output.register_forward_hook(lambda *_: calls.append(1))
    raw = head(seen)
    assert len(calls) == 1 and torch.allclose(raw, head(replace(seen, valid=None)), atol=1e-5, rtol=1e-5)
    part = features(head, [(4, 6), (4, 6), (9, 6)])[:2]  # on a canvas that neither fills
    assert head(part).shape[-2] * 4 == raw.shape[-2] * 9 and not head(part)[:, :, raw.shape[-2] :].any()


def test_nothing_beside_the_images_reaches_a_gradient(head):
    seen = features(head)
    head.train()
    raw = head(seen)
    assert raw.isfinite().all()
    raw.square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert all(values.isfinite().all() for values in head.state_dict().values())


def test_batch_norm_is_of_the_cells_of_images():
    head = LinearHead(FACTS, 5, "last4").train()
    seen = features(head, padding=1000.0)
    raw = head(seen)
    cells = torch.cat([seen.maps[tap] for tap in head.taps], 1).permute(0, 2, 3, 1)[
        seen.valid
    ]  # (20 + 18 + 20 + 21, C)
    assert len(cells) == 79
    mean, variance = cells.mean(0), cells.var(0, unbiased=False)
    expected = (cells - mean) / (variance + 1e-5).sqrt() @ head.conv.weight[:, :, 0, 0].T + head.conv.bias
    assert (raw.permute(0, 2, 3, 1)[seen.valid] - expected).abs().max() < 1e-4
    assert (head.bn.running_mean - 0.1 * mean).abs().max() < 1e-6
    assert (head.bn.running_var - (0.9 + 0.1 * cells.var(0))).abs().max() < 1e-5


def test_own_cells_of_images_in_their_order():
    head = LinearHead(FACTS, 5)
    seen = features(head, [(2, 3), (2, 3), (4, 1), (2, 3)])
    parts = own_cells(seen)
    assert [len(part) for part in parts] == [2, 1, 1]
    assert [part.geometry[0].padded for part in parts] == [(32, 48), (64, 16), (32, 48)]
    assert all(part.valid is None and part.geometry[0].box == (0, 0, *part.geometry[0].padded) for part in parts)
    assert all(part.maps[head.taps[0]].isfinite().all() for part in parts)
    assert torch.equal(torch.cat([part.pooled for part in parts]), seen.pooled)


@pytest.mark.filterwarnings("ignore")
def test_heads_of_mmsegmentation_take_one_shape_at_a_time():
    head = MMSegHead(FACTS, 5, dict(type="FCNHead", channels=8, num_convs=1, kernel_size=1, concat_input=False))
    with pytest.raises(UserError, match="images of several shapes"):
        head(features(head))
    seen = features(head.eval(), [(4, 6)] * 2)
    assert torch.equal(head(seen), head(replace(seen, valid=None)))
