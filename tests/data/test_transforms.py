import math

import mmcv
import numpy as np
import pytest
import torch

from siglip2_dense.contracts import IGNORE, Sample
from siglip2_dense.data.geometry import fitted_normals
from siglip2_dense.data.scenes import render
from siglip2_dense.data.transforms import (
    CenterCrop,
    ColourJitter,
    Crop,
    GammaJitter,
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    RandomRotation,
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
        sample.box_names = (("first",), ("second",))
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


@pytest.mark.parametrize(
    "transform",
    [
        Resize((90, 17)),
        RandomResize(60, 70),
        RandomCrop((20, 30)),
        RandomFlip(1.0),
        RandomRotation(40, 1.0),
        Crop(3, 5, 30, 20),
        CenterCrop((20, 31)),
    ],
)
def test_no_transform_invents_a_class_or_a_measurement(transform):
    sample = _sample((37, 53), measured=True)
    sample.labels[sample.labels == 2] = 4
    ours = transform(sample, _rng())
    assert set(ours.labels.unique().tolist()) <= {IGNORE, 0, 1, 3, 4}
    assert set(ours.depth.unique().tolist()) <= set(sample.depth.unique().tolist())
    outside = (ours.normals == 0).all(0)  # brought in by a rotation alone
    assert outside.any() == isinstance(transform, RandomRotation)
    assert (ours.labels[outside] == IGNORE).all() and (ours.depth[0, outside] == 0).all()
    assert torch.allclose(ours.normals.norm(dim=0), (~outside).float())
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


@pytest.mark.parametrize(
    "transform", [Resize((74, 53)), RandomCrop((20, 30)), RandomFlip(1.0), Crop(10, 15, 20, 35), CenterCrop((21, 30))]
)
def test_boxes_and_cameras_follow_the_pixels(transform):
    height, width = 37, 53
    sample = _sample((height, width), measured=True)
    sample.labels = torch.zeros(height, width, dtype=torch.int64)
    sample.labels[16:18, 25:28] = 1
    sample.boxes, sample.box_names = torch.tensor([[25.0, 16.0, 28.0, 18.0]]), (("mark",),)
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
        box_names=(("all",), ("first corner",), ("last corner",)),
    )
    ours = RandomCrop((10, 12))(sample, _rng(1))
    assert ours.boxes.tolist() == [[0, 0, 12, 10]] and ours.box_names == (("all",),)


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
    crops = (RandomCrop((5, 5)), Crop(0, 0, 5, 5), CenterCrop((5, 5)))
    for transform in (*crops, RandomFlip(1.0), RandomResize(10), Resize((5, 5)), RandomRotation(5, 1.0)):
        with pytest.raises(UserError, match=r"image and targets have different sizes \[\(20, 29\), \(37, 53\)\]"):
            transform(sample, _rng())


def test_fixed_crops_take_their_window_and_count_as_what_was_read():
    sample = _sample((37, 53), measured=True)
    sample.original_size = (37, 53)
    ours = Crop(4, 7, 30, 20)(sample, _rng())
    for name in ("image", "labels", "depth", "normals"):
        assert torch.equal(getattr(ours, name), getattr(sample, name)[..., 4:34, 7:27])
    assert ours.original_size == (30, 20)
    assert torch.allclose(ours.intrinsics[:2, 2], sample.intrinsics[:2, 2] - torch.tensor([7.0, 4.0]))
    assert torch.equal(ours.intrinsics[:, :2], sample.intrinsics[:, :2])
    middle = CenterCrop((20, 99))(sample, _rng())  # a side that is shorter is taken whole
    assert torch.equal(middle.labels, sample.labels[8:28]) and middle.original_size == (20, 53)
    wide = Sample(image=torch.arange(640, dtype=torch.int32).expand(3, 480, 640))
    assert CenterCrop((480, 480))(wide, _rng()).image[0, 0, [0, -1]].tolist() == [80, 559]
    assert Crop(45, 43, 427, 565)(wide, _rng()).image.shape == (3, 427, 565)
    assert RandomCrop((5, 5))(sample, _rng()).original_size == (37, 53)


def test_a_crop_that_does_not_fit_is_named():
    sample = _sample((37, 53))
    sample.path = "small.jpg"
    for crop in (Crop(8, 0, 30, 20), Crop(0, 34, 30, 20)):
        with pytest.raises(UserError, match=r"Crop\(top=.*\) does not fit small\.jpg, 37x53 pixels; give one"):
            crop(sample, _rng())
    for window in ((-1, 0, 5, 5), (0, 0, 0, 5)):
        with pytest.raises(UserError, match="give a corner that is not negative and a size of 1 or more"):
            Crop(*window)


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


# Rotating


class _Draw:
    """Stands for a generator: always applied, and the middle of the range plus ``share`` of it."""

    def __init__(self, share):
        self.share = share

    def random(self):
        return 0.0

    def uniform(self, low, high):
        return low + (high - low) * (0.5 + self.share)


def _turned(sample, degrees):
    return RandomRotation(abs(degrees), 1.0)(sample, _Draw(math.copysign(0.5, degrees)))


def test_quarter_turns_of_a_square_lose_nothing():
    """Clockwise; this is exact only if centres of pixels are at half-integers for the image and for the targets."""
    sample = _sample((32, 32), measured=True)
    ours = _turned(sample, 90)
    for name in ("image", "labels", "depth"):
        assert torch.equal(getattr(ours, name), getattr(sample, name).rot90(-1, (-2, -1))), name
    x, y, z = sample.normals.rot90(-1, (1, 2))
    assert torch.allclose(ours.normals, torch.stack([-y, x, z]), atol=1e-6)
    left, top, right, bottom = sample.boxes.unbind(1)
    assert torch.allclose(ours.boxes, torch.stack([32 - bottom, left, 32 - top, right], 1), atol=1e-4)
    assert ours.box_names == sample.box_names
    back = _turned(ours, -90)
    for name in ("image", "labels", "depth"):
        assert torch.equal(getattr(back, name), getattr(sample, name))
    for name in ("normals", "boxes", "intrinsics"):
        assert torch.allclose(getattr(back, name), getattr(sample, name), atol=1e-4)


def test_half_a_turn_is_both_flips():
    sample = _sample((21, 34), measured=True)
    ours = _turned(sample, 180)
    for name in ("image", "labels", "depth"):
        assert torch.equal(getattr(ours, name), getattr(sample, name).flip(-2, -1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("degrees", [2.5, -7.0, 30.0])
def test_a_rotation_is_that_of_mmcv(size, degrees):
    sample = _sample(size)
    ours = _turned(sample, degrees)
    image = mmcv.imrotate(_pixels(sample), degrees)
    assert (np.abs(_pixels(ours).astype(int) - image) <= 1).mean() > 0.999
    labels = sample.labels.numpy().astype(np.float32)
    labels = mmcv.imrotate(labels, degrees, border_value=IGNORE, interpolation="nearest")
    assert (ours.labels.numpy() != labels).sum() <= 1 + 0.03 * labels.size  # OpenCV rounds places to parts of a pixel


@pytest.mark.parametrize("degrees", [10.0, -25.0])
def test_boxes_and_cameras_turn_with_the_pixels(degrees):
    height, width = 60, 80
    camera = torch.tensor([[50.0, 2, 30], [0, 62.0, 33], [0, 0, 1]])
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[20:25, 50:54] = 1
    image = labels.to(torch.uint8).expand(3, -1, -1) * 200
    boxes, names = torch.tensor([[50.0, 20, 54, 25], [0, 0, 3, 3]]), (("mark",), ("corner",))
    sample = Sample(image=image, labels=labels, boxes=boxes, box_names=names, intrinsics=camera)
    ours = _turned(sample, degrees)

    point = torch.linalg.solve(camera, torch.tensor([52.0, 22.5, 1.0])) * 3
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    seen = _project(ours, torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ point)
    weight = ours.image[0].double()
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    assert seen == pytest.approx([float((weight * axis).sum() / weight.sum()) for axis in (columns, rows)], abs=0.02)
    assert ours.labels[int(seen[1]), int(seen[0])] == 1

    assert ours.box_names == (("mark",),)  # the corner is turned out of the image
    x0, y0, x1, y1 = ours.boxes[0].tolist()
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx(seen, abs=1e-4)
    marked = (ours.labels == 1).nonzero()
    assert (marked.min(0).values + 0.5 >= torch.tensor([y0, x0])).all()
    assert (marked.max(0).values + 0.5 <= torch.tensor([y1, x1])).all()
    assert x1 - x0 == pytest.approx(4 * cos + 5 * abs(sin), abs=1e-4)
    assert y1 - y0 == pytest.approx(5 * cos + 4 * abs(sin), abs=1e-4)


def test_a_rotation_has_its_range_and_probability():
    sample = Sample(image=torch.zeros(3, 9, 9, dtype=torch.uint8), intrinsics=torch.eye(3), boxes=torch.zeros(0, 4))
    sample.intrinsics[:2, 2] = torch.tensor([4.5, 1.5])  # 3 above the middle
    offsets = np.array([float(RandomRotation(30, 0.5)(sample, _rng(i)).intrinsics[0, 2]) - 4.5 for i in range(400)])
    angles = np.degrees(np.arcsin(offsets[np.abs(offsets) > 1e-6] / 3))
    assert 160 < len(angles) < 240
    assert angles.min() < -27 and angles.max() > 27 and np.abs(angles).max() <= 30.01 and abs(angles.mean()) < 4


# Depth, normals and camera stay one geometry


@pytest.mark.parametrize(
    ("transform", "most"),
    [
        (RandomFlip(1.0), 0.01),
        (Crop(20, 30, 150, 170), 0.01),
        (CenterCrop((100, 200)), 0.01),
        (Resize((64, 85)), 1.0),  # the nearest pixel is off by up to half of one
        (Resize((150, 300)), 1.0),
        (RandomRotation(20, 1.0), 1.0),
    ],
)
def test_normals_of_the_changed_depth_are_the_changed_normals(transform, most):
    scene = render(5)
    scene.intrinsics[0, 2], scene.intrinsics[1, 1] = 115, scene.intrinsics[0, 0] * 1.1  # no symmetric camera
    scene.normals = fitted_normals(scene.depth, scene.intrinsics, 9)
    ours = transform(scene, _rng(3))
    again = fitted_normals(ours.depth, ours.intrinsics, 9)
    labels = ours.labels.float()[None, None]
    alike = torch.nn.functional.max_pool2d(labels, 13, 1, 6) == -torch.nn.functional.max_pool2d(-labels, 13, 1, 6)
    away = alike[0, 0] & (ours.labels != IGNORE)
    away[:4] = away[-4:] = away[:, :4] = away[:, -4:] = False
    assert away.float().mean() > 0.2
    angles = torch.rad2deg(torch.acos((again * ours.normals).double().sum(0).clamp(-1, 1)))[away]
    assert angles.median() < most and (angles < 5 * most).float().mean() > 0.9


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


@pytest.mark.parametrize("size", SIZES[:3])
def test_jitter_is_that_of_torchvision(size, monkeypatch):
    from torchvision.transforms import ColorJitter

    names = ["brightness", "contrast", "saturation", "hue"]
    for seed in range(8):
        sample = _sample(size, seed)
        ours = ColourJitter(0.3, 0.2, 0.4, 0.1, p=1.0)(sample, _rng(seed)).image
        rng, values = _rng(seed), {}
        rng.random()
        order = [str(name) for name in rng.permutation(names)]
        for name in order:
            reach = {"brightness": (0.7, 1.3), "contrast": (0.8, 1.2), "saturation": (0.6, 1.4), "hue": (-0.1, 0.1)}[
                name
            ]
            values[name] = rng.uniform(*reach)
        drawn = (torch.tensor([names.index(name) for name in order]), *(values[name] for name in names))
        monkeypatch.setattr(ColorJitter, "get_params", staticmethod(lambda *_, drawn=drawn: drawn))
        assert torch.equal(ours, ColorJitter(0.3, 0.2, 0.4, 0.1)(sample.image))
        assert ours.dtype == torch.uint8 and not torch.equal(ours, sample.image)


def test_jitter_has_its_probability_and_may_leave_parts_out():
    sample = _sample((4, 6))
    changed = [not torch.equal(ColourJitter()(sample, _rng(i)).image, sample.image) for i in range(200)]
    assert 140 < sum(changed) < 180
    assert torch.equal(ColourJitter(0, 0, 0, 0, p=1.0)(sample, _rng()).image, sample.image)
    grey = Sample(image=torch.full((3, 2, 2), 100, dtype=torch.uint8))
    values = {int(ColourJitter(0.5, 0, 0, 0, 1.0)(grey, _rng(i)).image[0, 0, 0]) for i in range(200)}
    assert 50 <= min(values) < 60 and 140 < max(values) <= 150
    for wrong in ({"hue": 0.6}, {"brightness": -0.1}):
        with pytest.raises(UserError, match=r"ColourJitter\(.*\): give numbers from 0, for hue at most 0\.5"):
            ColourJitter(**wrong)


def test_gamma_is_of_the_values_up_to_255():
    """As the toolbox does it, pixel by pixel; with a power of 0-1, mid-grey would hardly move."""
    sample = _sample((37, 53))
    for seed in range(20):
        ours = GammaJitter(1.0)(sample, _rng(seed)).image
        rng = _rng(seed)
        rng.random()
        changed = sample.image.numpy() ** rng.uniform(0.9, 1.1)
        changed = changed * rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, 3)[:, None, None]
        assert np.abs(ours.numpy() - changed.clip(0, 255)).max() <= 0.5001
    grey = Sample(image=torch.full((3, 2, 2), 128, dtype=torch.uint8))
    images = torch.stack([GammaJitter(1.0)(grey, _rng(i)).image for i in range(300)])
    assert images.min() < 75 and images.max() == 255
    assert (images[:, 0] != images[:, 1]).any() and torch.equal(images[..., 0, 0], images[..., 1, 1])
    unchanged = [torch.equal(GammaJitter()(sample, _rng(i)).image, sample.image) for i in range(100)]
    assert 35 < sum(unchanged) < 65


def test_no_transform_changes_its_input():
    sample = _sample((37, 53), measured=True)
    before = {
        name: getattr(sample, name).clone() for name in ("image", "labels", "depth", "normals", "boxes", "intrinsics")
    }
    sizes = (Resize((9, 9)), RandomResize(60), ResizeShortSide(9), RandomCrop((9, 9), 0.75), Crop(1, 2, 9, 9))
    turns = (CenterCrop((9, 9)), RandomFlip(1.0), RandomRotation(30, 1.0))
    for transform in (*sizes, *turns, PhotoMetricDistortion(), ColourJitter(p=1.0), GammaJitter(1.0)):
        transform(sample, _rng())
    assert all(torch.equal(getattr(sample, name), value) for name, value in before.items())
