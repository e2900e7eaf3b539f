"""Depth: errors of each image, averaged over images, and the root mean square over all pixels."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import Box, Size
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.metrics.per_image import PerImage

CROPS: dict[str, tuple[Size, Box]] = {"eigen": ((480, 640), (45, 41, 426, 560))}
"""Size of the maps, and the part of them that counts. Eigen et al. 2014, as BTS reads it: rows 45 to 470 and columns 41
to 600, counted from 0."""

RATIO = 1.25  # of the d scores
PER_IMAGE = (
    *("rmse", "abs_rel", "sq_rel", "rmse_log", "log10", "silog", "d1", "d2", "d3"),
    *("rmse_aligned", "abs_rel_aligned", "d1_aligned"),
)


class DepthMetric(PerImage):
    """Scores of depth, in the unit of the data, against depths y with min_depth < y < max_depth inside the crop.

    For each image, over its valid pixels with predictions p:

    - rmse sqrt(mean (p - y)^2), abs_rel mean |p - y| / y, sq_rel mean (p - y)^2 / y;
    - with e = ln p - ln y: rmse_log sqrt(mean e^2), log10 mean |e| / ln 10, silog 100 sqrt(mean e^2 - (mean e)^2);
    - d1, d2, d3: the part, 0 to 1, with max(p / y, y / p) < 1.25, 1.25^2, 1.25^3;
    - rmse_aligned, abs_rel_aligned and d1_aligned of s p + t, the least squares fit to y of the image; a constant
      prediction, which has none, is scored as it is.

    Each is the mean over images that have valid pixels. rmse_pooled is the root over all pixels of the set: at least
    rmse, and another number. Nothing is clamped, but that logarithms and d1 to d3 take p from min_depth on; a NaN is a
    miss for d1 to d3 and makes the others NaN. Formulas: Eigen et al. 2014; silog with BTS's factor; alignment and
    averages as in probe3d.
    """

    def __init__(self, min_depth: float, max_depth: float, crop: str | None = None):
        """crop: a name of CROPS, else the whole map counts."""
        if not 0 < min_depth < max_depth:
            raise UserError(
                f"min_depth={min_depth} and max_depth={max_depth} of a depth metric: give 0 < min_depth < max_depth."
            )
        if crop is not None and crop not in CROPS:
            known = f"the known ones are {', '.join(CROPS)}."
            raise UserError(f"crop={crop!r} of a depth metric is unknown: {nearest(str(crop), CROPS, known)}")
        # and 1 for an image with valid pixels, its squared error, their number
        super().__init__(len(PER_IMAGE) + 3, min_depth=min_depth, max_depth=max_depth, crop=crop)
        self.min_depth, self.max_depth, self.crop = min_depth, max_depth, crop

    def update(self, prediction: Tensor, depth: Tensor, index: int) -> None:
        """Count one image: prediction and depth (1, H, W) or (H, W), 0 = none, and its position in the data set.

        Raises ValueError for unequal sizes and for a position that is negative or was counted before, UserError for
        maps of another size than those that the crop is of.
        """
        prediction, depth = self._cropped(prediction), self._cropped(depth).to(prediction.device)
        if prediction.shape != depth.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and depth {tuple(depth.shape)} are of one size")
        valid = (depth > self.min_depth) & (depth < self.max_depth)
        p, y = prediction[valid].double(), depth[valid].double()
        if len(y):
            ones, squares = y.new_ones(()), (p - y).square().sum()
            row = torch.stack([*self._errors(p, y), *_aligned_errors(p, y), ones, squares, ones * len(y)])
        else:
            row = y.new_zeros(self._shape)
        self._keep(index, row)

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        *values, images, squares, pixels = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore"):
            means = {name: value / images for name, value in zip(PER_IMAGE, values, strict=True)}
            return {**means, "rmse_pooled": np.sqrt(squares / pixels)}

    def _cropped(self, values: Tensor) -> Tensor:
        if values.ndim == 3 and len(values) == 1:
            values = values[0]
        if values.ndim != 2:
            raise ValueError(f"a map of depths is (1, H, W) or (H, W), not {tuple(values.shape)}")
        if self.crop is None:
            return values
        size, (top, left, height, width) = CROPS[self.crop]
        if values.shape != size:
            raise UserError(
                f"the crop {self.crop!r} is of maps of {size[0]}x{size[1]} pixels (height x width), not "
                f"{values.shape[0]}x{values.shape[1]}; score without a crop (crop=None), or on maps of that size."
            )
        return values[top : top + height, left : left + width]

    def _errors(self, p: Tensor, y: Tensor) -> list[Tensor]:
        """The unaligned scores of PER_IMAGE, of (n,) float64."""
        error = p - y
        positive = p.clamp(min=self.min_depth)
        e = positive.log() - y.log()
        return [
            error.square().mean().sqrt(),
            (error.abs() / y).mean(),
            (error.square() / y).mean(),
            e.square().mean().sqrt(),
            e.abs().mean() / math.log(10),
            100 * (e - e.mean()).square().mean().sqrt(),
            *(_within(positive, y, RATIO**power) for power in (1, 2, 3)),
        ]


def _aligned_errors(p: Tensor, y: Tensor) -> list[Tensor]:
    """The aligned scores of PER_IMAGE, of (n,) float64."""
    if p.min() < p.max():
        centred = p - p.mean()
        p = centred * ((centred * (y - y.mean())).sum() / centred.square().sum()) + y.mean()
    error = p - y
    return [error.square().mean().sqrt(), (error.abs() / y).mean(), _within(p, y, RATIO)]


def _within(p: Tensor, y: Tensor, ratio: float) -> Tensor:
    """The part with max(p / y, y / p) < ratio; without a division, so that p below 0 is far from any y."""
    return ((p < ratio * y) & (y < ratio * p)).double().mean()
