"""The normals task: unit vectors at the image's size, mirrored as a camera is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from siglip2_dense.contracts import Geometry, Sample
from siglip2_dense.losses.normals import angular_loss, uncertain_angular_loss
from siglip2_dense.models.probe import turned_back
from siglip2_dense.resample import resize_directions
from siglip2_dense.tasks import Normals


def whole(height, width):
    size = (height, width)
    return Geometry(size, (0, 0, *size), size, size, size)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-3)


def test_directions_are_resized_as_unit_vectors():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 7, dtype=torch.bfloat16) * 10
    found = resize_directions(maps, (20, 31))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, 20, 31))
    torch.testing.assert_close(resize_directions(3 * maps.float(), (20, 31)), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(resize_directions(maps, (5, 7)), F.normalize(maps.float(), dim=1))


def test_directions_next_to_nothing_have_a_small_gradient():
    for length in (0.0, 1e-10):
        maps = torch.full((1, 3, 2, 2), length, requires_grad=True)
        resize_directions(maps, (4, 4)).sum().backward()
        assert maps.grad.abs().max() < 1e7


@pytest.mark.parametrize("uncertainty", [True, False])
def test_loss_counts_where_there_is_a_normal(uncertainty):
    torch.manual_seed(1)
    task = Normals(uncertainty)
    assert task.channels == 3 + uncertainty
    raw = torch.randn(1, task.channels, 4, 6)
    place = Geometry((32, 48), (3, 5, 20, 30), (32, 48), (20, 30), (20, 30))
    normals = unit(3, 20, 30) * (torch.rand(20, 30) > 0.4)
    canvas = torch.zeros(1, 3, 32, 48)
    canvas[0, :, 3:23, 5:35] = normals
    valid = canvas.norm(dim=1) > 0
    direction = F.normalize(F.interpolate(F.normalize(raw[:, :3], dim=1), (32, 48), mode="bicubic"), dim=1)
    if uncertainty:
        kappa = F.interpolate(raw[:, 3:], (32, 48), mode="bilinear")
        expected = uncertain_angular_loss(direction, kappa, canvas, valid)
    else:
        expected = angular_loss(direction, canvas, valid)
    torch.testing.assert_close(task.loss(raw, [place], [Sample(normals=normals)])["loss_angle"], expected)


def test_a_mirrored_map_turned_back_is_the_map():
    """What a mirrored image shows at x = W - 1 - x points the other way along x."""
    task = Normals()
    raw = torch.randn(4, 5, 6)
    seen = raw.flip(-1).clone()
    seen[0] *= -1
    torch.testing.assert_close(turned_back(seen, task.mirrored), raw)


def test_prediction_has_unit_length_at_the_original_size():
    task = Normals()
    size = (16, 24)
    windows = [
        (torch.randn(4, 4, 4), Geometry((16, 16), (0, 0, 16, 16), (16, 16), size, (33, 47), (0, left, 16, 16)))
        for left in (0, 8)
    ]
    found = task.predict(windows)
    assert found.shape == (3, 33, 47)
    torch.testing.assert_close(found.norm(dim=0), torch.ones(33, 47))
    wall = torch.tensor([0.0, 0.0, -2.0, 5.0]).view(4, 1, 1).expand(4, 4, 4)
    constant = task.predict([(wall, place) for _, place in windows])
    torch.testing.assert_close(constant, torch.tensor([0.0, 0.0, -1.0]).view(3, 1, 1).expand(3, 33, 47))


def test_a_perfect_prediction_scores_zero():
    task = Normals()
    metric = task.metric()
    normals = unit(3, 30, 40)
    metric.update(normals.clone(), normals, 0)
    assert metric.compute()[task.headline] == 0


def test_draw():
    picture = Normals().draw(np.zeros((40, 50, 3), np.uint8), Sample(normals=unit(3, 40, 50)), unit(3, 40, 50))
    assert picture.dtype == np.uint8 and picture.shape[1] > 4 * 50
