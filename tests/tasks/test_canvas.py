"""Losses of images with cells of their own: each image's cells at its own size, and nothing of what stands beside."""

import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import IGNORE, Geometry, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.losses.depth import gradient_loss, sig_loss
from siglip2_dense.losses.normals import angular_loss, uncertain_angular_loss
from siglip2_dense.resample import cut_cells, resize_directions, resize_logits
from siglip2_dense.tasks import Depth, Normals, Segmentation
from siglip2_dense.tasks.canvas import maps_on_canvas
from siglip2_dense.tasks.depth import expected_depth

SIZES = [(37, 53), (100, 20), (61, 61)]  # pixels of the images
GRIDS = [(3, 4), (5, 1), (3, 3)]  # their cells, of 16 pixels for the encoder
NAN = float("nan")


def batch(channels, finer=1, sizes=SIZES, grids=GRIDS):
    """A raw map with NaN beside the images, and the geometry that ``pack`` gives."""
    torch.manual_seed(0)
    h, w = (max(side) for side in zip(*grids, strict=True))
    raw = torch.full((len(grids), channels, finer * h, finer * w), NAN)
    for number, (own_h, own_w) in enumerate(grids):
        raw[number, :, : finer * own_h, : finer * own_w] = torch.randn(channels, finer * own_h, finer * own_w)
    padded = (16 * h, 16 * w)
    geometry = [
        Geometry(padded, (0, 0, 16 * a, 16 * b), padded, size, size, scaled=True)
        for size, (a, b) in zip(sizes, grids, strict=True)
    ]
    return raw.requires_grad_(), geometry


def each(raw, finer=1):
    """The cells of each image, (1, K, h, w)."""
    return [raw[i : i + 1, :, : finer * h, : finer * w] for i, (h, w) in enumerate(GRIDS)]


def assert_gradient_is_that_of(expected, loss, raw):
    """And 0 beside the images."""
    (found,) = torch.autograd.grad(loss, raw)
    (wanted,) = torch.autograd.grad(expected, raw)
    assert found.isfinite().all() and (found - wanted).abs().max() < 1e-6 * max(1, wanted.abs().max())
    assert found[raw.isfinite()].any() and not found[raw.isnan()].any()


@pytest.mark.parametrize("finer", [1, 8])
@pytest.mark.parametrize("average", ["valid", "all"])
def test_segmentation(finer, average):
    raw, geometry = batch(7, finer)
    labels = [torch.randint(-1, 7, size) for size in SIZES]
    loss = Segmentation([f"class {i}" for i in range(7)], average).loss(
        raw, geometry, [Sample(labels=values) for values in labels]
    )["loss_ce"]
    total = sum(
        F.cross_entropy(F.interpolate(own, size, mode="bilinear"), values[None], ignore_index=IGNORE, reduction="sum")
        for own, size, values in zip(each(raw, finer), SIZES, labels, strict=True)
    )
    count = sum((values != IGNORE).sum() if average == "valid" else values.numel() for values in labels)
    torch.testing.assert_close(loss, total / count)
    assert_gradient_is_that_of(total / count, loss, raw)


def test_depth():
    raw, geometry = batch(8, 4)
    depths = [torch.rand(1, *size) * (torch.rand(1, *size) > 0.3) for size in SIZES]
    task = Depth(0.1, 4.0, bins=8, sig=10.0, gradient=0.5)
    losses = task.loss(raw, geometry, [Sample(depth=depth) for depth in depths])
    found = [
        F.interpolate(expected_depth(own, 0.1, 4.0, 0.1), size, mode="bilinear")
        for own, size in zip(each(raw, 4), SIZES, strict=True)
    ]
    # the logarithmic differences of all pixels together, laid out as one row
    row, depth = (torch.cat([x.flatten() for x in values])[None, None, None] for values in (found, depths))
    sig = 10 * sig_loss(row, depth, depth > 0)
    torch.testing.assert_close(losses["loss_sig"], sig)
    assert_gradient_is_that_of(sig, losses["loss_sig"], raw)
    laid = torch.ones(2, 3, 1, 100, 61)
    laid[1] = 0
    for number, ((height, width), *both) in enumerate(zip(SIZES, found, depths, strict=True)):
        for canvas, values in zip(laid, both, strict=True):
            canvas[number, :, :height, :width] = values.detach()
    torch.testing.assert_close(losses["loss_gradient"], 0.5 * gradient_loss(*laid, laid[1] > 0))


@pytest.mark.parametrize("uncertainty", [True, False])
def test_normals(uncertainty):
    task = Normals(uncertainty)
    raw, geometry = batch(task.channels, 4)
    normals = [F.normalize(torch.randn(3, *size), dim=0) * (torch.rand(size) > 0.4) for size in SIZES]
    loss = task.loss(raw, geometry, [Sample(normals=values) for values in normals])["loss_angle"]
    total, count = 0, 0
    for own, size, values in zip(each(raw, 4), SIZES, normals, strict=True):
        direction, valid = resize_directions(own[:, :3], size), values[None].any(1)
        if uncertainty:
            part = uncertain_angular_loss(direction, resize_logits(own[:, 3:], size), values[None], valid)
        else:
            part = angular_loss(direction, values[None], valid)
        total, count = total + part * valid.sum(), count + valid.sum()
    torch.testing.assert_close(loss, total / count)
    assert_gradient_is_that_of(total / count, loss, raw)


def test_images_of_one_shape_are_brought_to_their_size_at_once():
    raw, geometry = batch(3, sizes=[(37, 53)] * 2, grids=[(3, 4)] * 2)
    calls = []
    found = maps_on_canvas(raw, geometry, lambda maps, size: calls.append(size) or resize_logits(maps, size))
    assert calls == [(37, 53)] and torch.equal(found, F.interpolate(raw, (37, 53), mode="bilinear"))
    raw, geometry = batch(3, sizes=[(37, 53), (36, 52)], grids=[(3, 4)] * 2)  # of one grid, but not of one size
    found = maps_on_canvas(raw, geometry, resize_logits)
    assert found.shape == (2, 3, 37, 53) and not found[1, :, 36:].any() and not found[1, :, :, 52:].any()
    assert torch.equal(found[1:, :, :36, :52], F.interpolate(raw[1:], (36, 52), mode="bilinear"))


def test_images_that_happen_to_have_the_size_of_their_grids():
    """Not scaled, but in the corner of the grid: beside them there is nothing to read, either."""
    sizes = [(48, 64), (80, 16)]
    raw, geometry = batch(3, sizes=sizes, grids=[(3, 4), (5, 1)])
    found = maps_on_canvas(raw, geometry, resize_logits)
    for number, (height, width) in enumerate(sizes):
        own = raw[number : number + 1, :, : height // 16, : width // 16]
        expected = F.interpolate(own, (height, width), mode="bilinear")
        assert torch.equal(found[number : number + 1, :, :height, :width], expected)


@pytest.mark.parametrize("box", [(0, 0, 48, 64), (0, 1, 48, 63), (3, 5, 40, 50)])
def test_images_of_their_own_size_are_compared_on_the_padded_canvas(box):
    place = Geometry((48, 64), box, box[2:], box[2:], box[2:])
    raw = torch.randn(1, 3, 3, 4)
    assert torch.equal(maps_on_canvas(raw, [place], resize_logits), resize_logits(raw, (48, 64)))


def test_targets_have_the_size_that_the_image_came_in():
    raw, geometry = batch(8)
    samples = [Sample(path=f"{i}.png", depth=torch.ones(1, *place.box[2:])) for i, place in enumerate(geometry)]
    with pytest.raises(UserError, match=r"0\.png: depth of \(48, 64\) pixels for an image of \(37, 53\)"):
        Depth(bins=8).loss(raw, geometry, samples)


def test_cells_are_cut_between_cells():
    maps = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(cut_cells(maps, (64, 96), (16, 32, 32, 64)), maps[..., 1:3, 2:6])
    assert torch.equal(cut_cells(maps[0], (32, 48), (0, 0, 8, 48)), maps[0, :, :1])
    assert cut_cells(maps, (64, 96), (0, 0, 64, 48)).data_ptr() == maps.data_ptr()
    with pytest.raises(
        ValueError, match=r"\(0, 0, 40, 96\) does not end between cells where \(4, 6\) cover \(64, 96\)"
    ):
        cut_cells(maps, (64, 96), (0, 0, 40, 96))
