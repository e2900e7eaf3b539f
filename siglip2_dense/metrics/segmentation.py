"""Semantic segmentation: counts of labels and predictions, and the scores read from them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import IGNORE
from siglip2_dense.metrics.per_image import PerImage


def confusion(prediction: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64 counts of pixels, row = label, column = prediction; they add over images.

    prediction, labels: integers of one shape, 0 to K - 1; pixels whose label is ``IGNORE`` are left out.
    """
    pairs = (labels.long() - IGNORE) * num_classes + prediction  # the first K bins are ignored: faster than a mask
    counts = torch.bincount(pairs.flatten(), minlength=(num_classes + 1) * num_classes)
    return counts[num_classes:].view(num_classes, num_classes)


class SegmentationMetric(PerImage):
    """Scores over a data set, in percent: the numbers of mmsegmentation's ``IoUMetric``, not rounded.

    They are read from each image's counts, 12 bytes a class.
    """

    def __init__(self, num_classes: int):
        super().__init__(3, num_classes, num_classes=num_classes)  # int32: intersection, predicted and labelled pixels
        self.num_classes = num_classes

    def update(self, prediction: Tensor, labels: Tensor, index: int) -> None:
        """Count one image: prediction and labels (H, W), and its position in the data set.

        Raises ValueError for a negative position, or one that was counted before: no image may count twice.
        """
        counts = confusion(prediction, labels, self.num_classes)
        self._keep(index, torch.stack([counts.diagonal(), counts.sum(0), counts.sum(1)]).int())

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """mIoU and mAcc, the means over the classes that occur, and aAcc, the part of all pixels that is right.

        A class neither labelled nor predicted has no IoU, one not labelled no accuracy; without any, a mean is NaN.
        """
        iou, accuracy = _by_class(sums)
        right = _divide(sums[..., 0, :].sum(-1), sums[..., 2, :].sum(-1))
        return {"mIoU": _mean(iou), "mAcc": _mean(accuracy), "aAcc": right}

    def per_class(self) -> dict[str, list[float | None]]:
        """IoU and Acc of each class, None where it has none."""
        scores = zip(("IoU", "Acc"), _by_class(self.stacked().sum(0)), strict=True)
        return {name: [None if np.isnan(value) else float(value) for value in values] for name, values in scores}


def _by_class(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy (..., K) in percent, NaN where there is none, of counts (..., 3, K)."""
    intersection, predicted, labelled = np.moveaxis(counts, -2, 0)
    return _divide(intersection, predicted + labelled - intersection), _divide(intersection, labelled)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return 100 * part / whole


def _mean(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(scores, axis=-1)
