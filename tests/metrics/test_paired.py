"""Differences on the same images, against data sets that are put together image by image and scored anew."""

import numpy as np
import pytest
import torch

from siglip2_dense.metrics import paired as module
from siglip2_dense.metrics.paired import paired
from siglip2_dense.metrics.per_image import drawn_counts
from siglip2_dense.metrics.segmentation import SegmentationMetric

CLASSES, IMAGES = 3, 9


def counted(right, seed):
    """A metric, and what it has seen: labels and predictions (IMAGES, 4, 5)."""
    labels = torch.randint(-1, CLASSES, (IMAGES, 4, 5), generator=torch.Generator().manual_seed(0))
    numbers = torch.Generator().manual_seed(seed)
    guesses = torch.randint(0, CLASSES, labels.shape, generator=numbers)
    predictions = torch.where(torch.rand(labels.shape, generator=numbers) < right, labels.clamp(min=0), guesses)
    metric = SegmentationMetric(CLASSES)
    for index in range(IMAGES):
        metric.update(predictions[index], labels[index], index)
    return metric, predictions, labels


def miou(predictions, labels):
    seen = labels >= 0
    p, y = predictions[seen], labels[seen]
    return 100 * np.mean([((p == k) & (y == k)).sum().item() / ((p == k) | (y == k)).sum().item() for k in range(3)])


def test_sides_of_several_heads_are_compared_by_their_mean(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 150)
    sides = [[counted(0.4, 1), counted(0.5, 2)], [counted(0.6, 3), counted(0.6, 4)], [counted(0.5, 5)]]
    found = paired([[metric for metric, *_ in side] for side in sides], blocks=2)["mIoU"]

    def mean(side, picked):
        return np.mean([miou(predictions[picked], labels[picked]) for _, predictions, labels in side])

    first, *others = (mean(side, list(range(IMAGES))) for side in sides)
    assert found["first"] == pytest.approx(first)
    drawn = [count for block in (0, 1) for count in drawn_counts(IMAGES, 150, [module.SEED, block]).astype(int)]
    picks = [np.repeat(np.arange(IMAGES), count).tolist() for count in drawn]
    for other, side, value in zip(found["others"], sides[1:], others, strict=True):
        differences = [mean(side, picked) - mean(sides[0], picked) for picked in picks]
        assert other["value"] == pytest.approx(value) and other["difference"] == pytest.approx(value - first)
        assert other["interval"] == pytest.approx(np.percentile(differences, [2.5, 97.5]).tolist())
        assert other["excludes_0"] == (min(other["interval"]) > 0 or max(other["interval"]) < 0)
    assert found["others"][0]["excludes_0"] and not found["others"][1]["excludes_0"]


def test_one_image_and_the_same_side_differ_by_nothing():
    one = SegmentationMetric(2)
    one.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 7)
    for scores in paired([[one], [one, one]], blocks=1).values():
        (other,) = scores["others"]
        assert (other["difference"], other["interval"], other["excludes_0"]) == (0, [0, 0], False)
