"""Interpolations against torch's and timm's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from siglip2_dense.resample import (
    bilinear_corners,
    bilinear_runs,
    bilinear_weights,
    resize_features,
    resize_image,
    resize_labels,
    resize_logits,
    resize_positions,
)


@pytest.mark.parametrize(("cells", "pixels"), [(1, 5), (7, 3), (37, 518), (24, 336), (31, 500), (8, 8)])
def test_weights_along_one_axis_are_those_of_interpolate(cells, pixels):
    values = torch.randn(1, 1, cells, 1)
    expected = F.interpolate(values, size=(pixels, 1), mode="bilinear", align_corners=False)[0, 0, :, 0]
    weights = bilinear_weights(cells, pixels)
    assert torch.allclose(weights @ values[0, 0, :, 0], expected, atol=1e-5)
    assert torch.allclose(weights.sum(1), torch.ones(pixels), atol=1e-6)
    assert torch.equal(bilinear_weights(cells, pixels, 1, pixels - 1), weights[1 : pixels - 1])


@pytest.mark.parametrize(("cells", "pixels"), [(1, 5), (7, 3), (37, 518), (24, 336), (31, 500), (8, 8), (9, 1)])
def test_corners_and_runs_are_other_ways_to_say_the_same(cells, pixels):
    values = torch.randn(cells, dtype=torch.float64)
    expected = F.interpolate(values[None, None], size=pixels, mode="linear", align_corners=False)[0, 0]
    low, fraction = bilinear_corners(cells, pixels)
    beside = F.pad(values, (0, 1))
    assert torch.allclose(beside[low] + fraction * (beside[low + 1] - beside[low]), expected, atol=1e-9)

    run, members, first, step = bilinear_runs(cells, pixels)
    assert members.shape == (int(run.bincount().max()), cells + 1) and first.shape == (cells + 1,)
    assert first.min() >= 0 and first.max() < 1
    around, found = torch.cat([values[:1], values, values[-1:]]), torch.full((pixels + 1,), torch.nan).double()
    for i, row in enumerate(members):
        f = first + i * step
        found[row] = (1 - f) * around[:-1] + f * around[1:]
    assert torch.allclose(found[:pixels], expected, atol=1e-9)
    inside = members < pixels
    assert members[inside].sort()[0].tolist() == list(range(pixels))  # each once
    assert torch.equal(run[members[inside]], torch.arange(cells + 1).expand_as(members)[inside])


def test_logits_are_float32_and_half_pixel_centred():
    ramp = torch.arange(4.0).view(1, 1, 1, 4).to(torch.bfloat16)
    large = resize_logits(ramp, (1, 8))
    assert large.dtype == torch.float32
    assert large.flatten().tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


def test_features_are_averaged_down_and_blended_up():
    maps = torch.randn(2, 3, 8, 12)
    assert torch.allclose(resize_features(maps, (4, 4)), F.adaptive_avg_pool2d(maps, (4, 4)), atol=1e-6)
    assert torch.equal(resize_features(maps, (16, 24)), F.interpolate(maps, scale_factor=2.0, mode="bilinear"))
    assert resize_features(maps, (8, 12)) is maps


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("new", [(10, 10), (3, 17), (37, 20), (5, 20)])
def test_position_tables_as_timm(prefix, new):
    table = torch.randn(1, prefix + 100, 8)
    expected = resample_abs_pos_embed(table, list(new), [10, 10], num_prefix_tokens=prefix)
    assert torch.equal(resize_positions(table, (10, 10), new, prefix), expected)


def test_labels_invent_no_class_and_keep_their_type():
    labels = np.array([[-1, 5], [800, 2]], dtype=np.int64)
    large = resize_labels(labels, (7, 9))
    assert large.dtype == np.int64 and set(np.unique(large)) == {-1, 2, 5, 800}
    assert resize_labels(np.arange(10)[None], (1, 4))[0].tolist() == [0, 2, 5, 7]


def test_images_keep_a_constant_colour():
    image = np.full((5, 7, 3), (10, 200, 30), dtype=np.uint8)
    assert (resize_image(image, (11, 3)) == (10, 200, 30)).all()
