"""Semantic segmentation: counts of labels and predictions, and the scores read from them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from siglip2_dense.contracts import IGNORE


def confusion(prediction: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64 counts of pixels, row = label, column = prediction; they add over images.

    prediction, labels: integers of one shape, 0 to K - 1; pixels whose label is ``IGNORE`` are left out.
    """
    pairs = (labels.long() - IGNORE) * num_classes + prediction  # the first K bins are ignored: faster than a mask
    counts = torch.bincount(pairs.flatten(), minlength=(num_classes + 1) * num_classes)
    return counts[num_classes:].view(num_classes, num_classes)


class SegmentationMetric:
    """Scores over a data set, in percent: the numbers of mmsegmentation's ``IoUMetric``, not rounded.

    The confusion of the whole set is summed on the predictions' device. Beside it each image's counts are kept under
    its position in the data set, 12 bytes a class, so that intervals can be drawn over images.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.confusion: Tensor | None = None  # (K, K) int64, row = label, column = prediction
        self._counts: dict[int, Tensor] = {}  # (3, K) int32: intersection, predicted and labelled pixels

    def update(self, prediction: Tensor, labels: Tensor, index: int) -> None:
        """Count one image: prediction and labels (H, W), and its position in the data set.

        Raises ValueError for a negative position, or one that was counted before: no image may count twice.
        """
        if index < 0 or index in self._counts:
            raise ValueError(f"an image counts once, under its position in its data set; got {index}")
        counts = confusion(prediction, labels, self.num_classes)
        self.confusion = counts if self.confusion is None else self.confusion.add_(counts)
        self._counts[index] = torch.stack([counts.diagonal(), counts.sum(0), counts.sum(1)]).int()

    def sync(self) -> None:
        """Sum over all ranks, and bring the counts of their images to every rank; nothing to do with one process."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        if self.confusion is None:  # a rank without images
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            self.confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=device)
        dist.all_reduce(self.confusion)
        parts: list = [None] * dist.get_world_size()
        dist.all_gather_object(parts, {index: counts.cpu() for index, counts in self._counts.items()})
        merged = {index: counts for part in parts for index, counts in part.items()}
        if len(merged) != sum(map(len, parts)):
            raise ValueError("the ranks have counted an image twice")
        self._counts = merged

    @property
    def images(self) -> int:
        """Number of images counted."""
        return len(self._counts)

    def compute(self) -> dict[str, float]:
        """mIoU and mAcc, the means over the classes that occur, and aAcc, the part of all pixels that is right.

        A class neither labelled nor predicted has no IoU, one not labelled no accuracy; without any, a mean is NaN.
        """
        total = self._total()
        iou, accuracy = _scores(total)
        right = _divide(total[0].sum(), total[2].sum())
        return {"mIoU": float(_mean(iou)), "mAcc": float(_mean(accuracy)), "aAcc": float(right)}

    def per_class(self) -> dict[str, list[float | None]]:
        """IoU and Acc of each class, None where it has none."""
        scores = zip(("IoU", "Acc"), _scores(self._total()), strict=True)
        return {name: [None if np.isnan(value) else float(value) for value in values] for name, values in scores}

    def intervals(self, samples: int = 1000, seed: int = 0) -> dict[str, list[float]]:
        """95 % of mIoU over data sets of the same number of images, drawn from these with replacement."""
        counts = self._stack()  # (n, 3, K)
        n = len(counts)
        if not n:
            return {"mIoU": [float("nan")] * 2}
        picks = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
        totals = (picks.astype(np.float64) @ counts.reshape(n, -1)).reshape(samples, 3, -1).swapaxes(0, 1)
        means = _mean(_scores(totals)[0])
        means = means[~np.isnan(means)]  # a draw may hold no labelled pixel
        return {"mIoU": np.percentile(means, [2.5, 97.5]).tolist() if len(means) else [float("nan")] * 2}

    def _total(self) -> np.ndarray:
        """(3, K) float64: intersection, predicted and labelled pixels of the whole set."""
        if self.confusion is None:
            return np.zeros((3, self.num_classes))
        table = self.confusion.cpu().numpy().astype(np.float64)
        return np.stack([table.diagonal(), table.sum(0), table.sum(1)])

    def _stack(self) -> np.ndarray:
        """(n, 3, K) float64, exact for counts, in the order of the data set."""
        counts = [self._counts[index].cpu().numpy() for index in sorted(self._counts)]
        return np.array(counts, dtype=np.float64).reshape(-1, 3, self.num_classes)


def _scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy (..., K) in percent, NaN where there is none, of counts (3, ..., K)."""
    intersection, predicted, labelled = counts
    return _divide(intersection, predicted + labelled - intersection), _divide(intersection, labelled)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return 100 * part / whole


def _mean(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(scores, axis=-1)
