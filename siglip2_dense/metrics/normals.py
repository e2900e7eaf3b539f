"""Surface normals: angles of each image, averaged over images, and the same over all pixels of the set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.metrics.per_image import PerImage, sum_over_ranks

THRESHOLDS = (11.25, 22.5, 30)  # degrees
BINS_PER_DEGREE = 100
PER_IMAGE = ("rmse", "mean", "median", *(f"recall_{threshold}" for threshold in THRESHOLDS))


def angular_error(prediction: Tensor, normals: Tensor) -> Tensor:
    """(3, N) directions of any length, (3, N) unit vectors -> (N,) float64 degrees in [0, 180].

    A prediction that is zero, infinite or NaN has no direction and counts as 90 degrees.
    """
    a, b = prediction.double(), normals.double()
    # acos of a cosine near 1 is off by up to 0.04 degrees in float32; this is 0 for equal ones
    sine, cosine = torch.linalg.cross(a, b, dim=0).square().sum(0).sqrt(), (a * b).sum(0)  # times the length of a
    angle = torch.atan2(sine, cosine).rad2deg()
    return angle.masked_fill(~a.isfinite().all(0) | (a == 0).all(0), 90)


class NormalsMetric(PerImage):
    """Angles between predicted and true normals, in degrees, where the truth is not the zero vector.

    rmse, mean, median and recall_11.25, _22.5, _30 (the part, 0 to 1, strictly below so many degrees) are of each
    image, averaged over images that have valid pixels (probe3d). The same names with _pooled are of all pixels of the
    set (Fouhey et al. 2013, GeoNet), and other numbers. median_pooled is read from a histogram and so within 0.005
    degrees; it has no interval.
    """

    def __init__(self):
        # after the values: 1 for an image with valid pixels; sums of squares and angles, hits, number of pixels
        super().__init__(len(PER_IMAGE) + 1 + 3 + len(THRESHOLDS))
        self.histogram: Tensor | None = None  # (18001,) int64, pixels by angle rounded to 0.01 degrees

    def update(self, prediction: Tensor, normals: Tensor, index: int) -> None:
        """Count one image: prediction (3, H, W) of any length, normals (3, H, W), and its position in the data set.

        Raises ValueError for other shapes, and a position that is negative or was counted before.
        """
        if prediction.shape != normals.shape or normals.ndim != 3 or len(normals) != 3:
            shapes = tuple(prediction.shape), tuple(normals.shape)
            raise ValueError("prediction {} and normals {} are (3, H, W) of one size".format(*shapes))
        normals = normals.to(prediction.device)
        valid = (normals != 0).any(0)
        angle = angular_error(prediction[:, valid], normals[:, valid])
        n = len(angle)
        if n:
            ones, squares, total = angle.new_ones(()), angle.square().sum(), angle.sum()
            hits = [(angle < threshold).double().sum() for threshold in THRESHOLDS]
            values = [(squares / n).sqrt(), total / n, _median(angle), *(hit / n for hit in hits)]
            row = torch.stack([*values, ones, squares, total, *hits, ones * n])
        else:
            row = angle.new_zeros(self._shape)
        self._keep(index, row)
        counts = torch.bincount((angle * BINS_PER_DEGREE).round().long(), minlength=180 * BINS_PER_DEGREE + 1)
        self.histogram = counts if self.histogram is None else self.histogram.add_(counts)

    def sync(self) -> None:
        """Bring the rows and counts of all ranks to every rank; nothing to do with one process."""
        super().sync()
        self.histogram = sum_over_ranks(self.histogram, 180 * BINS_PER_DEGREE + 1)

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        values = np.moveaxis(sums, -1, 0)
        count = len(PER_IMAGE)
        images, squares, total, *hits, pixels = values[count:]
        with np.errstate(invalid="ignore"):
            means = {name: value / images for name, value in zip(PER_IMAGE, values[:count], strict=True)}
            recalls = {
                f"recall_{threshold}_pooled": hit / pixels for threshold, hit in zip(THRESHOLDS, hits, strict=True)
            }
            return {**means, "rmse_pooled": np.sqrt(squares / pixels), "mean_pooled": total / pixels, **recalls}

    def compute(self) -> dict[str, float]:
        """The scores of the set, with median_pooled."""
        return {**super().compute(), "median_pooled": self._pooled_median()}

    def _pooled_median(self) -> float:
        counts = np.zeros(1) if self.histogram is None else self.histogram.cpu().numpy()
        below, n = counts.cumsum(), counts.sum()
        if not n:
            return float("nan")
        middle = np.searchsorted(below, [(n - 1) // 2, n // 2], side="right")  # one pixel, or the two in the middle
        return float(middle.mean() / BINS_PER_DEGREE)


def _median(values: Tensor) -> Tensor:
    """The middle one, or the mean of the two in the middle; torch.median takes the lower."""
    n = len(values)
    ordered = values.sort().values
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
