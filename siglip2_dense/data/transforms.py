"""Transforms of a sample, every map by its kind: pixels are blended, classes and measurements never are.

A transform is a callable ``t(sample, rng) -> Sample`` that draws from ``rng`` and nothing else. Coordinates count from
the edge of the image (a pixel's centre is at half-integers), so boxes and intrinsics scale without an offset. Between
transforms an image is a permuted view of an (H, W, 3) array, which the resizing wants and which costs no copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import IGNORE, Box, Sample, Size
from siglip2_dense.errors import UserError
from siglip2_dense.registry import TRANSFORMS
from siglip2_dense.resample import resize_image, resize_labels, warp_image, warp_places

REDRAWS = 10  # of a crop with too much of one class; mmsegmentation's RandomCrop
GAMMA, BRIGHTNESS, TINT = (0.9, 1.1), (0.75, 1.25), (0.9, 1.1)  # DINOv2's NYUv2 configs; the tint is of each channel
VALUES = np.arange(256, dtype=np.float32)  # that a pixel may have; mmsegmentation computes in this type


@TRANSFORMS.register_module()
@dataclass
class ResizeShortSide:
    """For tests: the image's short side becomes ``short`` unless the long one would exceed ``long``; targets stay."""

    short: int
    long: int | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return resized(sample, fitted(sample.image.shape[1:], self.short, self.long), targets=False)


@TRANSFORMS.register_module()
@dataclass
class Resize:
    """To exactly ``size`` (height, width); ``targets=False``, for tests, leaves the targets as they are."""

    size: Size
    targets: bool = True

    def __post_init__(self):
        _check_size(self)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return resized(sample, self.size, self.targets)


@TRANSFORMS.register_module()
@dataclass
class RandomResize:
    """The image and its targets as in ResizeShortSide, with both sides times a ratio drawn uniformly.

    Source: mmcv's RandomResize with ``scale=(long, short)`` and ``keep_ratio=True``.
    """

    short: int
    long: int | None = None
    ratio: tuple[float, float] = (0.5, 2.0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        ratio = rng.uniform(*self.ratio)
        long = None if self.long is None else int(self.long * ratio)
        return resized(sample, fitted(_common_size(sample), int(self.short * ratio), long), targets=True)


@TRANSFORMS.register_module()
@dataclass
class RandomCrop:
    """A window of ``size`` (height, width); a side that is shorter is taken whole, without padding.

    While the window holds fewer than two classes, or one has ``cat_max_ratio`` or more of the pixels that count, it is
    drawn again, at most ten times. Source: mmsegmentation's RandomCrop.
    """

    size: Size
    cat_max_ratio: float = 1.0

    def __post_init__(self):
        _check_size(self)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = _common_size(sample)
        crop = min(self.size[0], height), min(self.size[1], width)
        for _ in range(REDRAWS + 1):
            top = int(rng.integers(0, height - crop[0] + 1))
            left = int(rng.integers(0, width - crop[1] + 1))
            if self.cat_max_ratio >= 1 or sample.labels is None:
                break
            if _is_mixed(sample.labels[top : top + crop[0], left : left + crop[1]], self.cat_max_ratio):
                break
        return cropped(sample, (top, left, *crop))


@TRANSFORMS.register_module()
@dataclass
class Crop:
    """Always the same window of the image and its targets, as if the file held no more, so in tests too."""

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self):
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise UserError(f"{self}: give a corner that is not negative and a size of 1 or more, in pixels.")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = _common_size(sample)
        if self.top + self.height > height or self.left + self.width > width:
            raise UserError(f"{self} does not fit {sample.path}, {height}x{width} pixels; give one that fits.")
        return _cut(sample, (self.top, self.left, self.height, self.width))


@TRANSFORMS.register_module()
@dataclass
class CenterCrop:
    """As Crop, ``size`` (height, width) around the middle; a side that is shorter is taken whole."""

    size: Size

    def __post_init__(self):
        _check_size(self)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = _common_size(sample)
        crop = min(self.size[0], height), min(self.size[1], width)
        return _cut(sample, ((height - crop[0]) // 2, (width - crop[1]) // 2, *crop))


@TRANSFORMS.register_module()
@dataclass
class RandomFlip:
    """Left and right exchanged with probability ``p``; normals' x is negated, as in a mirrored camera."""

    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _flip(sample) if rng.random() < self.p else sample


@TRANSFORMS.register_module()
@dataclass
class RandomRotation:
    """With probability ``p``, turned about the middle by up to ``degrees`` either way; the size stays.

    What comes in from outside is black and has no targets. The camera turns along, so normals do too; a box becomes the
    one around its turned corners. Source: RandomRotate of the Monocular-Depth-Estimation-Toolbox.
    """

    degrees: float
    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _rotate(sample, rng.uniform(-self.degrees, self.degrees)) if rng.random() < self.p else sample


@TRANSFORMS.register_module()
@dataclass
class ColourJitter:
    """With probability ``p``, brightness, contrast and saturation times up to 1 +- theirs and hue shifted by up to +-
    ``hue`` of the circle, in random order: torchvision's ColorJitter. The defaults are those of probe3d.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.2
    p: float = 0.8

    def __post_init__(self):
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise UserError(f"{self}: give numbers from 0, for hue at most 0.5.")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        from torchvision.transforms import functional

        if rng.random() >= self.p:
            return sample
        image = sample.image
        for name in rng.permutation(["brightness", "contrast", "saturation", "hue"]):
            most = getattr(self, name)
            low, high = (-most, most) if name == "hue" else (max(1 - most, 0), 1 + most)
            image = getattr(functional, f"adjust_{name}")(image, rng.uniform(low, high)) if most else image
        return replace(sample, image=image)


@TRANSFORMS.register_module()
@dataclass
class GammaJitter:
    """With probability ``p``, pixels to a random power, times a random brightness, times a random tint, clipped.

    The power is of 0-255, which changes bright pixels by a factor of up to 1.7; of 0-1 it would hardly show. Source:
    ColorAug of the Monocular-Depth-Estimation-Toolbox, with the ranges of DINOv2's NYUv2 configs.
    """

    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        gamma, brightness, tint = rng.uniform(*GAMMA), rng.uniform(*BRIGHTNESS), rng.uniform(*TINT, 3)
        table = np.arange(256)[:, None] ** gamma * brightness * tint  # (256, 3): what becomes of each value
        table = table.clip(0, 255).round().astype(np.uint8)
        return replace(sample, image=_image(table[_pixels(sample.image), np.arange(3)]))


@TRANSFORMS.register_module()
@dataclass
class PhotoMetricDistortion:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2; contrast before or behind the rest.

    Source: mmsegmentation's PhotoMetricDistortion with its defaults, and what it draws after ``numpy.random.seed``.
    What becomes of a value is looked up, and nothing is turned into BGR, which takes a third of its time.
    """

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        draw = np.random.RandomState(int(rng.integers(2**32)))
        image = _pixels(sample.image)

        def contrast(image: np.ndarray) -> np.ndarray:
            return _looked_up(image, VALUES * draw.uniform(0.5, 1.5)) if draw.randint(2) else image

        if draw.randint(2):
            image = _looked_up(image, VALUES + draw.uniform(-32, 32))
        early = draw.randint(2)
        if early:
            image = contrast(image)
        if draw.randint(2):
            image = _in_hsv(image, 1, VALUES * draw.uniform(0.5, 1.5))
        if draw.randint(2):
            image = _in_hsv(image, 0, (VALUES + draw.randint(-18, 18)) % 180)
        return replace(sample, image=_image(image if early else contrast(image)))


def _looked_up(image: np.ndarray, becomes: np.ndarray) -> np.ndarray:
    """The image (..., 3) or a channel of it, uint8, with each value 0-255 replaced; becomes: (256,) of any range."""
    import cv2

    return cv2.LUT(image, becomes.clip(0, 255).astype(np.uint8))


def _in_hsv(image: np.ndarray, channel: int, becomes: np.ndarray) -> np.ndarray:
    """The RGB image with the values of its hue (0, half degrees), saturation (1) or brightness (2) replaced."""
    import cv2

    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = _looked_up(hsv[..., channel], becomes)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _check_size(transform) -> None:
    size = transform.size
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise UserError(f"{type(transform).__name__}: size={size!r}; give (height, width) in pixels.")


def fitted(size: Size, short: int, long: int | None) -> Size:
    """``size`` scaled until its short side is ``short`` or its long side ``long``, rounded as in mmcv.imrescale."""
    scale = short / min(size)
    if long is not None:
        scale = min(scale, long / max(size))
    height, width = (max(int(side * scale + 0.5), 1) for side in size)
    return height, width


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _changed(sample: Sample, names: tuple[str, ...], function) -> Sample:
    """``function`` applied to those of the named fields that the sample has."""
    values = {name: getattr(sample, name) for name in names}
    return replace(sample, **{name: function(value) for name, value in values.items() if value is not None})


def _common_size(sample: Sample) -> Size:
    sizes = {tuple(m.shape[-2:]) for m in (sample.image, sample.labels, sample.depth, sample.normals) if m is not None}
    if len(sizes) > 1:
        raise UserError(
            f"{sample.path}: image and targets have different sizes {sorted(sizes)} before a transform of both; "
            "use resizes that change the targets too before it."
        )
    return sizes.pop()


def resized(sample: Sample, size: Size, targets: bool) -> Sample:
    """The image, and its targets if asked, at ``size``."""
    old = _common_size(sample) if targets else sample.image.shape[1:]
    y, x = size[0] / old[0], size[1] / old[1]
    sample = replace(sample, image=_image(resize_image(_pixels(sample.image), size)))
    sample = _changed(sample, ("intrinsics",), lambda matrix: matrix * matrix.new_tensor([[x], [y], [1]]))
    if not targets:
        return sample
    sample = _changed(sample, ("labels",), lambda labels: torch.from_numpy(resize_labels(labels.numpy(), size)))
    sample = _changed(sample, ("depth", "normals"), lambda values: resize_nearest(values, size))
    return _changed(sample, ("boxes",), lambda boxes: boxes * boxes.new_tensor([x, y, x, y]))


def resize_nearest(values: Tensor, size: Size) -> Tensor:
    """(C, H, W) -> (C, *size), from the same pixels that labels are taken from."""
    height, width = values.shape[-2:]
    places = resize_labels(np.arange(height * width).reshape(height, width), size)
    return _taken(values, torch.from_numpy(places))


def _taken(values: Tensor, places: Tensor, none: int = 0) -> Tensor:
    """(..., H, W) -> (..., *places.shape): the pixels with these numbers, row by row; ``none`` for negative ones."""
    return torch.where(places < 0, none, values.flatten(-2)[..., places.clamp(min=0)])


def _cut(sample: Sample, box: Box) -> Sample:
    """The crop, which counts as the image that was read: a prediction is brought to its size, as the targets are."""
    return replace(cropped(sample, box), original_size=box[2:])


def cropped(sample: Sample, box: Box) -> Sample:
    """What a sample has inside ``box``."""
    top, left, height, width = box
    window = (..., slice(top, top + height), slice(left, left + width))
    sample = _changed(sample, ("image", "labels", "depth", "normals"), lambda values: values[window])
    if sample.intrinsics is not None:
        shift = sample.intrinsics.new_tensor([[0, 0, left], [0, 0, top], [0, 0, 0]])
        sample = replace(sample, intrinsics=sample.intrinsics - shift)
    sample = _changed(sample, ("boxes",), lambda boxes: boxes - boxes.new_tensor([left, top, left, top]))
    return _clip_boxes(sample)


def _clip_boxes(sample: Sample) -> Sample:
    """Boxes cut at the edges of the image; those outside it go."""
    if sample.boxes is None:
        return sample
    height, width = sample.image.shape[1:]
    boxes = sample.boxes.clamp(min=0).minimum(sample.boxes.new_tensor([width, height, width, height]))
    kept = (boxes[:, :2] < boxes[:, 2:]).all(1)
    names = tuple(name for name, keep in zip(sample.box_names, kept.tolist(), strict=True) if keep)
    return replace(sample, boxes=boxes[kept], box_names=names)


def _flip(sample: Sample) -> Sample:
    width = _common_size(sample)[1]
    sample = _changed(sample, ("image", "labels", "depth", "normals"), lambda values: values.flip(-1))
    sample = _changed(sample, ("normals",), lambda normals: normals * normals.new_tensor([-1, 1, 1])[:, None, None])
    if sample.intrinsics is not None:  # a column x becomes width - x, and so does the camera's x axis
        mirror = sample.intrinsics.new_tensor([[-1, 0, width], [0, 1, 0], [0, 0, 1]])
        sample = replace(sample, intrinsics=mirror @ sample.intrinsics @ torch.diag(mirror.new_tensor([-1, 1, 1])))
    return _changed(sample, ("boxes",), lambda b: torch.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], 1))


def _rotate(sample: Sample, degrees: float) -> Sample:
    """Clockwise about the middle; for the camera that is about its z axis, so depth stays."""
    height, width = _common_size(sample)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    centre = torch.tensor([width / 2, height / 2, 0], dtype=torch.float64)
    move = turn.clone()  # the same of pixels, where the centre stays
    move[:, 2] += centre - turn @ centre
    places = torch.from_numpy(warp_places((height, width), move[:2].numpy()))

    def turned(vectors: Tensor) -> Tensor:
        return torch.einsum("ij,jhw->ihw", turn.to(vectors.dtype), _taken(vectors, places))

    def around_turned(boxes: Tensor) -> Tensor:
        corners = torch.stack([boxes[:, [0, 2, 0, 2]], boxes[:, [1, 1, 3, 3]], torch.ones(len(boxes), 4)])
        x, y, _ = torch.einsum("ij,jnk->ink", move.to(boxes.dtype), corners)
        return torch.stack([x.amin(1), y.amin(1), x.amax(1), y.amax(1)], 1)

    sample = replace(sample, image=_image(warp_image(_pixels(sample.image), move[:2].numpy())))
    sample = _changed(sample, ("labels",), lambda labels: _taken(labels, places, IGNORE))
    sample = _changed(sample, ("depth",), lambda depth: _taken(depth, places))
    sample = _changed(sample, ("normals",), turned)
    sample = _changed(sample, ("intrinsics",), lambda matrix: (move @ matrix.double() @ turn.T).to(matrix.dtype))
    return _clip_boxes(_changed(sample, ("boxes",), around_turned))


def _is_mixed(labels: Tensor, most: float) -> bool:
    """Whether there are two classes or more and none has ``most`` or more of the pixels that count."""
    counts = np.bincount(labels.numpy().ravel() - IGNORE)[1:]
    return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < most
