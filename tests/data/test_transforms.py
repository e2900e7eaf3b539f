import math

import mmcv
import numpy as np
import pytest
import torch

from siglip2_dense.contracts import IGNORE, Sample
from siglip2_dense.data.transforms import (
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
    ResizeShortSide,
    fitted,
)
from siglip2_dense.errors import UserError

SIZES = [(37, 53), (64, 21), (5, 300), (1, 7), (48, 48)]  # height, width


def _rng(*seed):
    return np.random.default_rng(seed or [0])


def _pixels(sample):
    return sample.image.permute(1, 2, 0).numpy()


def _sample(size, seed=0, classes=5, measured=False):
    rng = _rng(seed)
    height, width = size
    sample = Sample(
        image=torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).permute(2, 0, 1),
        labels=torch.from_numpy(rng.integers(IGNORE, classes, size)),
    )
    if measured:
        depth = rng.uniform(1, 5, (1, *size)).astype(np.float32) * rng.integers(0, 2, (1, *size))
        normals = rng.normal(size=(3, *size)).astype(np.float32)
        sample.depth = torch.from_numpy(depth.astype(np.float32))
        sample.normals = torch.from_numpy(normals / np.linalg.norm(normals, axis=0))
        sample.boxes = torch.tensor([[0, 0, width / 2, height / 2], [width / 4, height / 4, width, height]])
        sample.box_names = ("first", "second")
        sample.intrinsics = torch.tensor([[50.0, 0, width * 0.4], [0, 60.0, height * 0.6], [0, 0, 1]])
    return sample


def _theirs(transform, sample):
    """The sample after a transform of mmcv or mmsegmentation."""
    labels = sample.labels.numpy().astype(np.int32)
    return transform.transform({"img": _pixels(sample), "gt_seg_map": labels, "seg_fields": ["gt_seg_map"]})


def _assert_same(sample, theirs):
    assert np.array_equal(_pixels(sample), theirs["img"])
    assert np.array_equal(sample.labels.numpy(), theirs["gt_seg_map"])
    assert sample.labels.dtype == torch.int64


# Sizes and resizing


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("short", "long"), [(32, 100), (512, None), (17, 2048), (33, 40)])
def test_fitted_sizes_are_those_of_mmcv(size, short, long):
    from mmcv.image.geometric import rescale_size

    width, height = rescale_size(size[::-1], (math.inf if long is None else long, short))
    assert fitted(size, short, long) == (max(height, 1), max(width, 1))


def test_no_side_vanishes():
    assert fitted((1, 1000), 8, 64) == (1, 64)


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("ratio", [0.5, 0.83, 1.0, 1.37])
@pytest.mark.parametrize(("short", "long"), [(40, 99999999), (40, 60)])
def test_random_resize_is_that_of_mmcv(size, ratio, short, long):
    from mmcv.transforms import RandomResize as Theirs

    sample = _sample(size)
    ours = RandomResize(short, None if long > 1e6 else long, (ratio, ratio))(sample, _rng())
    _assert_same(ours, _theirs(Theirs((long, short), (ratio, ratio), keep_ratio=True), sample))


def test_random_resize_draws_uniformly_within_its_range():
    sides = [RandomResize(100, ratio=(0.5, 2.0))(_sample((10, 20)), _rng(i)).image.shape[1] for i in range(200)]
    assert min(sides) >= 50 and max(sides) < 200
    assert 115 < np.mean(sides) < 135  # 125
    assert len(set(sides)) > 80


@pytest.mark.parametrize("size", SIZES)
def test_resize_is_that_of_mmcv(size):
    from mmcv.transforms import Resize as Theirs

    sample = _sample(size)
    _assert_same(Resize((36, 44))(sample, _rng()), _theirs(Theirs((44, 36)), sample))


@pytest.mark.parametrize("transform", [ResizeShortSide(40, 60), Resize((33, 20), targets=False)])
def test_resizes_for_tests_leave_the_targets(transform):
    sample = _sample((37, 53), measured=True)
    ours = transform(sample, _rng())
    for name in ("labels", "depth", "normals", "boxes"):
        assert torch.equal(getattr(ours, name), getattr(sample, name))
    size = (40, 57) if isinstance(transform, ResizeShortSide) else (33, 20)
    assert np.array_equal(_pixels(ours), mmcv.imresize(_pixels(sample), size[::-1]))
    assert ours.intrinsics[0, 0] == pytest.approx(50 * size[1] / 53)  # these are of the image


@pytest.mark.parametrize("transform", [Resize((90, 17)), RandomResize(60, 70), RandomCrop((20, 30)), RandomFlip(1.0)])
def test_no_transform_invents_a_class_or_a_measurement(transform):
    sample = _sample((37, 53), measured=True)
    sample.labels[sample.labels == 2] = 4
    ours = transform(sample, _rng())
    assert set(ours.labels.unique().tolist()) <= {IGNORE, 0, 1, 3, 4}
    assert set(ours.depth.unique().tolist()) <= set(sample.depth.unique().tolist())
    assert torch.allclose(ours.normals.norm(dim=0), torch.ones(ours.normals.shape[1:]))
    sizes = {tuple(values.shape[-2:]) for values in (ours.image, ours.labels, ours.depth, ours.normals)}
    assert len(sizes) == 1


def test_measurements_are_taken_from_the_pixels_that_labels_are_taken_from():
    height, width = 37, 53
    places = torch.arange(height * width).reshape(height, width)
    sample = Sample(image=torch.zeros(3, height, width, dtype=torch.uint8), labels=places, depth=places[None].float())
    ours = Resize((20, 90))(sample, _rng())
    assert torch.equal(ours.depth[0].long(), ours.labels)


# Geometry: a point of the world stays under its pixel


def _project(sample, point):
    column, row, _ = (sample.intrinsics @ point / point[2]).tolist()
    return column, row


@pytest.mark.parametrize("transform", [Resize((74, 53)), RandomCrop((20, 30)), RandomFlip(1.0)])
def test_boxes_and_cameras_follow_the_pixels(transform):
    height, width = 37, 53
    sample = _sample((height, width), measured=True)
    sample.labels = torch.zeros(height, width, dtype=torch.int64)
    sample.labels[16:18, 25:28] = 1
    sample.boxes, sample.box_names = torch.tensor([[25.0, 16.0, 28.0, 18.0]]), ("mark",)
    centre = torch.tensor([26.5, 17.0, 1.0])
    point = torch.linalg.solve(sample.intrinsics, centre)  # a point of the world seen at the mark's centre

    ours = transform(sample, _rng(3))
    rows, columns = torch.nonzero(ours.labels == 1, as_tuple=True)
    assert len(rows)
    edges = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
    assert ours.boxes.tolist() == [pytest.approx(edges)]
    if isinstance(transform, RandomFlip):
        point = point * torch.tensor([-1, 1, 1])
    x0, y0, x1, y1 = edges
    assert _project(ours, point) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=1e-4)


def test_boxes_are_cut_at_the_window_and_dropped_outside_it():
    sample = Sample(
        image=torch.zeros(3, 40, 40, dtype=torch.uint8),
        boxes=torch.tensor([[0.0, 0, 40, 40], [0, 0, 0.5, 0.5], [39.5, 39.5, 40, 40]]),
        box_names=("all", "first corner", "last corner"),
    )
    ours = RandomCrop((10, 12))(sample, _rng(1))
    assert ours.boxes.tolist() == [[0, 0, 12, 10]] and ours.box_names == ("all",)


# Cropping


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [1.0, 0.75, 0.3])
def test_random_crop_is_that_of_mmsegmentation(size, most, monkeypatch):
    from mmseg.datasets.transforms import RandomCrop as Theirs

    for seed in range(10):
        sample = _sample(size, seed, classes=3)
        sample.labels[: size[0] // 2] = 0  # so that windows differ in their mixture
        sample.labels[:, : size[1] // 3] = IGNORE
        ours = RandomCrop((16, 24), most)(sample, _rng(seed))
        monkeypatch.setattr(np.random, "randint", _rng(seed).integers)  # mmsegmentation draws from the global state
        _assert_same(ours, _theirs(Theirs((16, 24), most, ignore_index=IGNORE), sample))


def test_a_crop_takes_a_shorter_side_whole():
    ours = RandomCrop((16, 24))(_sample((5, 300)), _rng())
    assert ours.image.shape == (3, 5, 24) and ours.labels.shape == (5, 24)


def test_a_crop_looks_for_a_mixture_but_not_for_ever():
    sample = _sample((40, 400))
    sample.labels[:] = 0
    sample.labels[:, 150:170] = 1

    def share(most):
        crop = RandomCrop((40, 40), most)
        return np.mean([(crop(sample, _rng(i)).labels == 1).any() for i in range(100)])

    assert share(1.0) < 0.3 and share(0.75) > 0.6
    sample.labels[:] = IGNORE
    assert RandomCrop((40, 40), 0.75)(sample, _rng()).labels.unique().tolist() == [IGNORE]


def test_random_transforms_refuse_targets_of_another_size():
    sample = ResizeShortSide(20)(_sample((37, 53)), _rng())
    for transform in (RandomCrop((5, 5)), RandomFlip(1.0), RandomResize(10), Resize((5, 5))):
        with pytest.raises(UserError, match=r"image and targets have different sizes \[\(20, 29\), \(37, 53\)\]"):
            transform(sample, _rng())


# Flipping


def test_a_flip_mirrors_everything_and_twice_is_nothing():
    sample = _sample((37, 53), measured=True)
    once = RandomFlip(1.0)(sample, _rng())
    assert torch.equal(once.image, sample.image.flip(2)) and torch.equal(once.labels, sample.labels.flip(1))
    assert torch.equal(once.normals[0], -sample.normals[0].flip(1))
    assert torch.equal(once.normals[1:], sample.normals[1:].flip(2))
    assert once.boxes[0].tolist() == [53 / 2, 0, 53, 37 / 2]
    twice = RandomFlip(1.0)(once, _rng())
    for name in ("image", "labels", "depth", "normals"):
        assert torch.equal(getattr(twice, name), getattr(sample, name))
    for name in ("boxes", "intrinsics"):
        assert torch.allclose(getattr(twice, name), getattr(sample, name))


def test_a_flip_commutes_with_an_even_resize():
    sample = _sample((36, 52))
    flip, resize = RandomFlip(1.0), Resize((72, 104))
    one, other = flip(resize(sample, _rng()), _rng()), resize(flip(sample, _rng()), _rng())
    assert torch.equal(one.labels, other.labels)
    assert (one.image.int() - other.image.int()).abs().max() <= 1


def test_normals_of_a_flipped_depth_are_the_flipped_normals():
    """A slanted plane: its normal is known, and mirrors with the camera."""
    height, width, normal = 20, 30, torch.tensor([0.6, 0.0, -0.8])
    intrinsics = torch.tensor([[25.0, 0, 12], [0, 25.0, 9], [0, 0, 1]])

    def rays(camera):
        rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        pixels = torch.stack([columns, rows, torch.ones_like(rows)])
        return torch.einsum("ij,jhw->ihw", torch.linalg.inv(camera), pixels)

    depth = -4 / torch.einsum("i,ihw->hw", normal, rays(intrinsics))[None]
    sample = Sample(
        image=torch.zeros(3, height, width, dtype=torch.uint8),
        depth=depth,
        normals=normal[:, None, None].expand(3, height, width).contiguous(),
        intrinsics=intrinsics,
    )
    ours = RandomFlip(1.0)(sample, _rng())
    points = ours.depth * rays(ours.intrinsics)
    assert torch.allclose((points * ours.normals).sum(0), torch.full((height, width), -4.0), atol=1e-4)


def test_a_flip_has_its_probability():
    sample = _sample((4, 6))
    flipped = [not torch.equal(RandomFlip(0.25)(sample, _rng(i)).image, sample.image) for i in range(400)]
    assert 70 < sum(flipped) < 130


# Colour


@pytest.mark.parametrize("size", SIZES)
def test_distortion_is_that_of_mmsegmentation_on_bgr(size):
    from mmseg.datasets.transforms import PhotoMetricDistortion as Theirs

    ours, theirs, changed = PhotoMetricDistortion(), Theirs(), 0
    for seed in range(20):
        sample = _sample(size, seed)
        image = ours(sample, _rng(seed)).image
        np.random.seed(int(_rng(seed).integers(2**32)))
        bgr = theirs.transform({"img": _pixels(sample)[..., ::-1].copy()})["img"]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), bgr[..., ::-1])
        changed += not torch.equal(image, sample.image)
    assert changed > 10


def test_red_stays_red_and_blue_blue():
    sample = Sample(image=torch.tensor([[[200, 0]], [[0, 0]], [[0, 200]]], dtype=torch.uint8))
    distort = PhotoMetricDistortion()
    for seed in range(50):
        (red, _, blue) = distort(sample, _rng(seed)).image[:, 0].int().tolist()
        assert red[0] > blue[0] and blue[1] > red[1]


def test_distortion_leaves_numpys_global_state_and_its_input():
    sample = _sample((8, 9))
    before, state = sample.image.clone(), np.random.get_state()[1].copy()
    distort = PhotoMetricDistortion()
    first, again, other = (distort(sample, _rng(seed)).image for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(sample.image, before)
    assert np.array_equal(np.random.get_state()[1], state)


def test_no_transform_changes_its_input():
    sample = _sample((37, 53), measured=True)
    before = {
        name: getattr(sample, name).clone() for name in ("image", "labels", "depth", "normals", "boxes", "intrinsics")
    }
    for transform in (Resize((9, 9)), RandomResize(60), RandomCrop((9, 9), 0.75), RandomFlip(1.0), ResizeShortSide(9)):
        transform(sample, _rng())
    assert all(torch.equal(getattr(sample, name), value) for name, value in before.items())
