"""Transforms of images with boxes: a crop that keeps what it shows most of, squares, and boxes that lie on another.

They are transforms as those of ``transforms.py``. Source of all: scenic's OWL-ViT, and appendix A1 of its paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import Box, Sample, Size
from siglip2_dense.data.transforms import cropped, resized
from siglip2_dense.errors import UserError
from siglip2_dense.registry import TRANSFORMS

GREY = 128  # 127.5, the middle of the pixels, rounded: what SigLIP's normalisation makes 0 of
REDRAWS = 100  # of a crop that does not fit, as in TensorFlow's sample_distorted_bounding_box


@TRANSFORMS.register_module()
@dataclass
class RandomBoxCrop:
    """A window with a random part ``area`` of the image's pixels and a random ``aspect``, width by height.

    Boxes are cut at its edges; one of which less than ``kept`` is left goes. Where nothing that was drawn fits into the
    image it stays whole. The paper has an area from 0.33, its code from 0.3.
    """

    area: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.75, 1.33)
    kept: float = 0.6

    def __post_init__(self):
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"{self}: give areas between 0 and 1 and aspects above 0, the lower one first.")
        if not 0 <= self.kept <= 1:
            raise UserError(f"{self}: kept is the part of a box that must be left, 0 to 1.")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        box = self._window(tuple(sample.image.shape[1:]), rng)
        if sample.boxes is not None:
            top, left, height, width = box
            low, high = sample.boxes.new_tensor([left, top]), sample.boxes.new_tensor([left + width, top + height])
            inside = (sample.boxes[:, 2:].minimum(high) - sample.boxes[:, :2].maximum(low)).clamp(min=0).prod(1)
            whole = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(1)
            sample = chosen(sample, torch.nonzero(inside >= self.kept * whole)[:, 0])
        return cropped(sample, box)

    def _window(self, size: Size, rng: np.random.Generator) -> Box:
        height, width = size
        for _ in range(REDRAWS):
            aspect = rng.uniform(*self.aspect)
            lowest, highest = (math.sqrt(part * height * width / aspect) for part in self.area)
            rows = round(rng.uniform(lowest, highest))
            columns = round(rows * aspect)
            part = rows * columns / (height * width)
            if 0 < rows <= height and 0 < columns <= width and self.area[0] <= part <= self.area[1]:
                top, left = (int(rng.integers(0, room + 1)) for room in (height - rows, width - columns))
                return top, left, rows, columns
        return 0, 0, height, width


@TRANSFORMS.register_module()
@dataclass
class PadToSquare:
    """The long side becomes ``size``, and grey fills the square below or to the right; for training.

    Raises UserError for targets that have a value for each pixel.
    """

    size: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if any(target is not None for target in (sample.labels, sample.depth, sample.normals)):
            raise UserError(
                f"{sample.path}: PadToSquare is for images with boxes alone; use resizes and crops instead."
            )
        return in_square(sample, self.size)


def in_square(sample: Sample, size: int) -> Sample:
    """``PadToSquare`` of a sample."""
    longest = max(sample.image.shape[1:])
    height, width = (max(side * size // longest, 1) for side in sample.image.shape[1:])  # of integers, so exact
    sample = resized(sample, (height, width), targets=True)
    square = torch.full((size, size, 3), GREY, dtype=torch.uint8).permute(2, 0, 1)
    square[:, :height, :width] = sample.image
    return replace(sample, image=square)


def mosaic(tiles: Sequence[Sample], size: int) -> Sample:
    """k x k samples, row by row, each in a square of its own, as one image of ``size``, which k divides.

    Path and position are those of the first.
    """
    k = math.isqrt(len(tiles))
    side = size // k
    image = torch.empty((size, size, 3), dtype=torch.uint8).permute(2, 0, 1)
    boxes = []
    for number, tile in enumerate(tiles):
        top, left = (side * step for step in divmod(number, k))
        tile = in_square(tile, side)
        image[:, top : top + side, left : left + side] = tile.image
        boxes.append(tile.boxes + tile.boxes.new_tensor([left, top, left, top]))
    return Sample(
        image=image,
        boxes=torch.cat(boxes),
        box_names=tuple(names for tile in tiles for names in tile.box_names),
        path=tiles[0].path,
        original_size=(size, size),
        index=tiles[0].index,
    )


def chosen(sample: Sample, places: Tensor) -> Sample:
    """The sample with some of its boxes, in the order of their ``places``."""
    return replace(sample, boxes=sample.boxes[places], box_names=tuple(sample.box_names[i] for i in places.tolist()))


def merged(sample: Sample, least: float, rng: np.random.Generator) -> Sample:
    """Boxes that overlap by ``least`` or more (intersection over union) as one that has all their names.

    While there are two such, those that overlap most become one of the two, drawn at random.
    """
    overlap = overlaps(sample.boxes, sample.boxes).numpy()
    np.fill_diagonal(overlap, 0)
    names, gone = [dict.fromkeys(some) for some in sample.box_names], set()
    while overlap.size and overlap.max() >= least:
        pair = np.unravel_index(overlap.argmax(), overlap.shape)
        keep, drop = rng.permutation(pair).tolist()
        names[min(pair)] |= names[max(pair)]  # in the order of the boxes
        names[keep] = names[min(pair)]
        overlap[drop] = overlap[:, drop] = 0
        gone.add(drop)
    if not gone:
        return sample
    left = [place for place in range(len(names)) if place not in gone]
    return replace(sample, boxes=sample.boxes[left], box_names=tuple(tuple(names[place]) for place in left))


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) intersection over union of boxes (n, 4) and (m, 4), x0 y0 x1 y1; 0 where both are empty."""
    low, high = a[:, None, :2].maximum(b[:, :2]), a[:, None, 2:].minimum(b[:, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    whole = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1) - inside
    return torch.where(whole > 0, inside / whole, 0)
