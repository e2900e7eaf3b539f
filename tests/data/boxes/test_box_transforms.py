"""Transforms of boxes: every box keeps to the pixels that it was around."""

import numpy as np
import pytest
import torch

from siglip2_dense.contracts import Sample
from siglip2_dense.data.boxes.transforms import GREY, PadToSquare, RandomBoxCrop, merged, mosaic, overlaps
from siglip2_dense.errors import UserError
from siglip2_dense.registry import TRANSFORMS, build

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def painted(size, boxes):
    """A black image with a filled box of each colour; boxes in whole pixels."""
    image = torch.zeros(*size, 3, dtype=torch.uint8).permute(2, 0, 1)
    for (x0, y0, x1, y1), colour in zip(boxes, COLOURS, strict=False):
        image[:, y0:y1, x0:x1] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    names = tuple((f"thing {i}",) for i in range(len(boxes)))
    return Sample(image=image, boxes=torch.tensor(boxes).reshape(-1, 4).float(), box_names=names, path="a", index=4)


def seen(sample, number):
    """The box around the pixels of a colour."""
    colour = torch.tensor(COLOURS[number])[:, None, None]
    rows, columns = torch.nonzero(((sample.image.int() - colour).abs() < 120).all(0)).T
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_crops_cut_boxes_and_keep_those_of_which_most_is_left():
    boxes = [(0, 0, 14, 10), (18, 12, 38, 30), (40, 20, 60, 40)]
    kept, areas, aspects = set(), [], []
    for seed in range(200):
        ours = RandomBoxCrop()(painted((40, 60), boxes), rng(seed))
        height, width = ours.image.shape[1:]
        areas.append(height * width / 2400)
        aspects.append(width / height)
        for box, (name,) in zip(ours.boxes.int().tolist(), ours.box_names, strict=True):
            number = int(name[-1])
            assert box == seen(ours, number)
            x0, y0, x1, y1 = boxes[number]
            part = (box[2] - box[0]) * (box[3] - box[1]) / ((x1 - x0) * (y1 - y0))
            assert part >= 0.6
            kept.add((number, part < 1))
    assert 0.3 <= min(areas) < 0.4 and 0.8 < max(areas) <= 1
    assert 0.7 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.4
    assert {(number, cut) for number in range(3) for cut in (False, True)} <= kept


def test_a_box_whose_rest_is_too_small_goes_though_the_rest_is_in_the_image():
    sample = painted((40, 60), [(0, 0, 60, 40)])
    whole = build(TRANSFORMS, dict(type="RandomBoxCrop", area=(0.3, 0.5), kept=0.6))(sample, rng())
    assert whole.boxes.shape == (0, 4) and whole.box_names == ()
    some = RandomBoxCrop(area=(0.3, 0.5), kept=0.0)(sample, rng())
    assert some.boxes.tolist() == [[0, 0, some.image.shape[2], some.image.shape[1]]]


def test_an_image_that_no_window_fits_stays_whole():
    sample = painted((4, 200), [(3, 1, 9, 3)])
    ours = RandomBoxCrop(area=(0.9, 1.0), aspect=(0.8, 1.2))(sample, rng())
    assert ours.image.shape == (3, 4, 200) and ours.boxes.tolist() == sample.boxes.tolist()
    assert RandomBoxCrop()(painted((40, 60), []), rng()).boxes.shape == (0, 4)


@pytest.mark.parametrize("wrong", [dict(area=(0, 1)), dict(area=(0.5, 0.3)), dict(aspect=(2, 1)), dict(kept=1.5)])
def test_crops_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="RandomBoxCrop"):
        RandomBoxCrop(**wrong)


@pytest.mark.parametrize("size", [(30, 60), (60, 30), (45, 45), (7, 60)])
def test_a_square_has_the_image_in_its_upper_left_and_grey_beside_it(size):
    sample = painted(size, [(2, 1, size[1] - 2, size[0] - 1)])
    ours = PadToSquare(96)(sample, rng())
    assert ours.image.shape == (3, 96, 96)
    height, width = (int(side * 96 / max(size)) for side in size)
    assert (ours.image[:, height:] == GREY).all() and (ours.image[:, :, width:] == GREY).all()
    assert not (ours.image[:, :height, :width] == GREY).all(0).any(1).all()
    expected = sample.boxes[0] * torch.tensor([width / size[1], height / size[0]] * 2)
    assert torch.allclose(ours.boxes[0], expected) and np.abs(np.subtract(seen(ours, 0), expected.numpy())).max() <= 1.5


def test_the_long_side_is_the_squares_whatever_it_was():
    """As a product with a rounded scale 47 x (256 / 47) is a little less than 256."""
    for side in range(1, 320):
        flat = Sample(image=torch.zeros(3, 1, side, dtype=torch.uint8), boxes=torch.tensor([[0.0, 0, side, 1]]))
        ours = PadToSquare(256)(flat, rng())
        assert ours.boxes[0, 2] == pytest.approx(256, abs=1e-3) and (ours.image[:, 0] == 0).all(), side


def test_a_square_of_maps_is_refused():
    sample = painted((5, 5), [])
    sample.labels = torch.zeros(5, 5, dtype=torch.int64)
    with pytest.raises(UserError, match="boxes alone"):
        PadToSquare(96)(sample, rng())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_mosaics_have_their_tiles_row_by_row_with_their_boxes(k):
    tiles = []
    for number in range(k * k):
        size = (20, 30) if number % 2 else (33, 20)
        tiles.append(painted(size, [(4, 5, 16, 15)] if number != 1 else []))
        tiles[-1].box_names = tuple((f"of tile {number}",) for _ in tiles[-1].box_names)
    ours = mosaic(tiles, 72)
    side = 72 // k
    assert ours.image.shape == (3, 72, 72) and ours.original_size == (72, 72) and (ours.path, ours.index) == ("a", 4)
    assert [names[0] for names in ours.box_names] == [f"of tile {i}" for i in range(k * k) if i != 1 or k == 1]
    for box, (name,) in zip(ours.boxes, ours.box_names, strict=True):
        top, left = (side * step for step in divmod(int(name.split()[-1]), k))
        tile = Sample(image=ours.image[:, top : top + side, left : left + side])
        expected = np.add(seen(tile, 0), [left, top, left, top])
        assert np.abs(expected - box.numpy()).max() <= 1.5
        assert left <= box[0] and box[2] <= left + side and top <= box[1] and box[3] <= top + side


def test_overlaps_of_boxes():
    a = torch.tensor([[0.0, 0, 4, 4], [1, 1, 1, 1]])
    b = torch.tensor([[2.0, 2, 6, 6], [0, 0, 4, 4], [9, 9, 10, 10], [1, 1, 1, 1]])
    assert torch.allclose(overlaps(a, b), torch.tensor([[4 / 28, 1, 0, 0], [0, 0, 0, 0]]))
    assert overlaps(a, b[:0]).shape == (2, 0)


def _merged(boxes, names, least=0.9, seed=0):
    sample = Sample(image=torch.zeros(3, 9, 9), boxes=torch.tensor(boxes).float().reshape(-1, 4), box_names=names)
    return merged(sample, least, rng(seed))


def test_boxes_that_lie_on_another_become_one_with_all_names():
    boxes = [[0, 0, 100, 100], [50, 50, 60, 60], [0, 0, 100, 98], [0, 0, 100, 102], [50, 50, 60, 70]]
    names = (("a",), ("b",), ("c",), ("a",), ("d",))
    found = [_merged(boxes, names, seed=seed) for seed in range(20)]
    for ours in found:
        by_names = {frozenset(names): box for names, box in zip(ours.box_names, ours.boxes.tolist(), strict=True)}
        assert set(by_names) == {frozenset("ac"), frozenset("b"), frozenset("d")}
        assert by_names[frozenset("ac")] in [boxes[0], boxes[2], boxes[3]] and by_names[frozenset("b")] == boxes[1]
        assert all(len(names) == len(set(names)) for names in ours.box_names)
    assert len({str(ours.boxes.tolist()) for ours in found}) > 1  # which of them is drawn


def test_boxes_are_merged_as_long_as_two_overlap_enough():
    """The first and the last overlap by 0.85 alone; they meet only if the middle one goes."""
    boxes = [[0, 0, 100, 100], [0, 0, 100, 92], [0, 0, 100, 85]]
    counts = {len(_merged(boxes, (("a",), ("b",), ("c",)), seed=seed).boxes) for seed in range(20)}
    assert counts == {1, 2}
    apart = _merged(boxes, (("a",), ("b",), ("c",)), least=0.95)
    assert apart.boxes.tolist() == boxes and apart.box_names == (("a",), ("b",), ("c",))
    assert len(_merged([], ()).boxes) == 0
