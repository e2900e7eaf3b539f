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


def class_counts(prediction: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(3, K) int64 counts of pixels of each class: predicted where it is labelled, predicted, and labelled.

    Of thousands of classes the table of ``confusion`` would be far larger than the image, and is not made.
    """
    if num_classes**2 <= 4 * labels.numel():
        counts = confusion(prediction, labels, num_classes)
        return torch.stack([counts.diagonal(), counts.sum(0), counts.sum(1)])
    right = torch.where(prediction == labels, labels, IGNORE)
    counted = torch.where(labels == IGNORE, IGNORE, prediction)
    return torch.stack([
        torch.bincount(classes.flatten() - IGNORE, minlength=num_classes + 1)[1:]
        for classes in (right, counted, labels)
    ])  # fmt: skip


class SegmentationMetric(PerImage):
    """Scores over a data set, in percent: the numbers of mmsegmentation's ``IoUMetric``, not rounded, and detectron2's.

    They are read from each image's counts, 12 bytes a class.
    """

    def __init__(self, num_classes: int):
        super().__init__(3, num_classes, num_classes=num_classes)  # int32: intersection, predicted and labelled pixels
        self.num_classes = num_classes

    def update(self, prediction: Tensor, labels: Tensor, index: int) -> None:
        """Count one image: prediction and labels (H, W), and its position in the data set.

        Raises ValueError for a negative position, or one that was counted before: no image may count twice.
        """
        self._keep(index, class_counts(prediction, labels, self.num_classes).int())

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """mIoU and mAcc, the means over the classes that occur, and aAcc, the part of all pixels that is right.

        A class neither labelled nor predicted has no IoU, one not labelled no accuracy; without any, a mean is NaN. A
        class that is predicted and nowhere labelled has an IoU of 0, which counts in mIoU (mmsegmentation's rule) and
        not in mIoU_labelled (detectron2's since July 2022): with hundreds of classes they differ by points.
        """
        iou, accuracy = _by_class(sums)
        labelled = sums[..., 2, :]
        right = _divide(sums[..., 0, :].sum(-1), labelled.sum(-1))
        of_labelled = _mean(np.where(labelled > 0, iou, np.nan))
        return {"mIoU": _mean(iou), "mIoU_labelled": of_labelled, "mAcc": _mean(accuracy), "aAcc": right}

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
