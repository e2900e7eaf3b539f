"""What a head could say at best of each cell: against sums by hand, and scores worked out on paper."""

import math

import pytest
import torch

from siglip2_dense.contracts import IGNORE, Geometry
from siglip2_dense.tasks import Depth, Normals, Segmentation
from siglip2_dense.tasks.cells import is_overview, sums


def whole(*size):
    return Geometry(size, (0, 0, *size), size, size, size)


def scores(task, target, grid):
    """The metric of the oracle of one image, whose grid covers it exactly."""
    metric = task.metric()
    metric.update(task.ideal(target, [(grid, whole(*target.shape[-2:]))]), target, 0)
    return metric.compute()


def test_sums_of_a_window_of_a_resized_image_in_its_padding():
    """In units of half a resized pixel everything is a whole number: a pixel of the original is 3 of them."""
    torch.manual_seed(0)
    maps = torch.rand(2, 10, 14, dtype=torch.float64)
    place = Geometry((16, 16), (2, 0, 12, 16), (12, 16), (15, 21), (10, 14), window=(3, 5, 12, 16))
    units = maps.repeat_interleave(3, 1).repeat_interleave(3, 2)
    expected = torch.zeros(2, 4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            rows = slice(max(2 + 8 * i, 6), min(10 + 8 * i, 30))  # the canvas begins 2 resized pixels above the window
            expected[:, i, j] = units[:, rows, 10 + 8 * j : 18 + 8 * j].sum((1, 2)) / 9
    assert torch.allclose(sums(maps, (4, 4), place).double(), expected, rtol=1e-5)
    assert sums(torch.ones(1, 10, 14), (4, 4), place).sum() == pytest.approx(12 * 16 / 1.5**2)


def test_an_overview_is_known_by_its_size():
    assert is_overview(Geometry((8, 8), (0, 0, 8, 8), (8, 8), (16, 24), (16, 24), window=(0, 0, 16, 24)))
    assert not is_overview(Geometry((8, 8), (0, 0, 8, 8), (8, 8), (16, 24), (16, 24), window=(8, 8, 8, 8)))


def test_stripes_of_whole_cells_are_perfect():
    labels = torch.tensor([0, 2, 1]).repeat_interleave(4).repeat(8, 1)
    assert scores(Segmentation(["a", "b", "c", "d"]), labels, (2, 3)) == {
        "mIoU": 100, "mIoU_labelled": 100, "mAcc": 100, "aAcc": 100,
    }  # fmt: skip


def test_a_checkerboard_finer_than_the_grid():
    y, x = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    task = Segmentation(["a", "b"])
    found = scores(task, (y + x) % 2, (2, 3))  # a tie in each cell: the first class wins everywhere
    assert found["mIoU"] == pytest.approx(25) and found["aAcc"] == pytest.approx(50)
    labels = ((y % 2) | (x % 2)).long()  # three of four pixels are of the second
    found = scores(task, labels, (2, 3))
    assert found["mIoU"] == pytest.approx(75 / 2) and found["aAcc"] == pytest.approx(75)
    labels[(y % 2 == 1) & (x < 6)] = IGNORE  # of those in the left half that count, half are: the first class wins
    found = scores(task, labels[:, :4], (2, 1))
    assert found["mIoU"] == pytest.approx(25) and found["aAcc"] == pytest.approx(50)


def test_interpolation_rounds_off_a_cell_that_stands_alone():
    """A corner pixel of 4 x 4 has (5/8)^2 of its own cell, less than half; the 12 others have 35/64 or more."""
    labels = torch.zeros(12, 12, dtype=torch.int64)
    labels[4:8, 4:8] = 1
    found = scores(Segmentation(["a", "b"]), labels, (3, 3))
    assert found["mIoU"] == pytest.approx(100 * (12 / 16 + 128 / 132) / 2)


def test_of_windows_and_mirrored_ones_each_is_averaged_by_itself():
    labels = torch.tensor([0, 1, 1, 0]).repeat_interleave(4).repeat(8, 1)
    task = Segmentation(["a", "b"])
    windows = [Geometry((8, 8), (0, 0, 8, 8), (8, 8), (8, 16), (8, 16), window=(0, left, 8, 8)) for left in (0, 8)]
    assert torch.equal(task.ideal(labels, [((2, 2), place) for place in windows]), labels)
    both = [((2, 2), place) for place in (*windows, *windows)]  # seen straight and in a mirror
    assert torch.equal(task.ideal(labels, both), labels)
    over = Geometry((8, 8), (0, 0, 8, 8), (8, 8), (8, 16), (8, 16), window=(0, 0, 8, 16))
    assert torch.equal(task.ideal(labels, [*both, ((2, 2), over)]), labels)


def test_nothing_labelled_is_nothing_scored():
    found = scores(Segmentation(["a", "b"]), torch.full((8, 8), IGNORE), (2, 2))
    assert all(math.isnan(value) for value in found.values())


def test_depth_is_the_mean_of_each_cell_between_whose_centres_it_is_linear():
    depth = torch.tensor([1.0, 3.0]).repeat_interleave(4).repeat(1, 4, 1)
    task = Depth(min_depth=0.5, max_depth=10)
    found = task.ideal(depth, [((1, 2), whole(4, 8))])
    assert found[0, 0].tolist() == [1, 1, 1.25, 1.75, 2.25, 2.75, 3, 3]
    assert scores(task, depth, (1, 2))["rmse"] == pytest.approx(math.sqrt(1.25 / 8))


def test_depths_that_are_not_scored_take_no_part():
    depth = torch.tensor([1.0, 3.0]).repeat_interleave(4).repeat(1, 4, 1)
    depth[..., 4:] = 0  # a cell without any
    depth[..., :2, 0], depth[..., 2:, 0] = 20, 0.25  # beyond the range
    task = Depth(min_depth=0.5, max_depth=10)
    found = task.ideal(depth, [((1, 2), whole(4, 8))])
    assert torch.equal(found[..., :6], torch.ones(1, 4, 6))  # what lies beyond the last cell with any is not scored
    assert scores(task, depth, (1, 2))["rmse"] == 0


def test_normals_are_the_direction_of_their_sum():
    slope = math.sin(math.radians(30))
    normals = torch.stack([torch.full((8, 8), slope), torch.zeros(8, 8), torch.full((8, 8), -math.sqrt(1 - slope**2))])
    assert scores(Normals(), normals, (2, 2))["rmse"] == pytest.approx(0, abs=1e-3)
    normals[0, ::2] *= -1  # in turn 30 degrees to either side
    assert scores(Normals(), normals, (2, 2))["rmse"] == pytest.approx(30, abs=1e-3)
    normals[:, ::2] = 0  # of one side alone there are any
    assert scores(Normals(), normals, (2, 2))["rmse"] == pytest.approx(0, abs=1e-3)
