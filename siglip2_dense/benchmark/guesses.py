"""Predictions that do not look at the image: what a trained model has to beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.metrics.segmentation import SegmentationMetric

CELLS = 32  # parts of an image, a side, that are told apart


def class_counts(data) -> Tensor:
    """(CELLS, CELLS, K) float64: how often each class of a data set is at each place of its images."""
    counts = torch.zeros(CELLS, CELLS, len(data.classes), dtype=torch.float64)
    for index in range(len(data)):
        cells = _resized(data[index].labels, (CELLS, CELLS))
        counts += F.one_hot(cells + 1, counts.shape[-1] + 1)[..., 1:]  # without what does not count
    return counts


def guesses(counts: Tensor, data) -> dict[str, SegmentationMetric]:
    """What guesses score on a data set: "everywhere" the class that ``counts`` has most of, "at its place" the one that
    it has most of there, and "drawn", a class for each pixel, all alike.

    counts: ``class_counts`` of the set that the guesses are made from, whose classes are those of this one.
    """
    overall = counts.sum((0, 1))
    at_place = (counts + 1e-6 * overall).argmax(-1)  # where it has nothing, as everywhere
    metrics = {name: SegmentationMetric(len(overall)) for name in ("everywhere", "at its place", "drawn")}
    generator = torch.Generator().manual_seed(0)
    for index in range(len(data)):
        labels = data[index].labels
        predictions = {
            "everywhere": overall.argmax().expand(labels.shape),
            "at its place": _resized(at_place, labels.shape),
            "drawn": torch.randint(len(overall), labels.shape, generator=generator),
        }
        for name, metric in metrics.items():
            metric.update(predictions[name], labels, index)
    return metrics


def constant_loss(counts: Tensor) -> float:
    """The least mean binary cross-entropy over classes and pixels of probabilities that are the same for all images and
    places: the mean entropy of the classes' frequencies.
    """
    p = counts.sum((0, 1)) / counts.sum()
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean().item()


def _resized(labels: Tensor, size) -> Tensor:
    """(H, W) integers -> (*size), the nearest."""
    rows, columns = (
        ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new).long()
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]
