"""Cross-entropy at some of the labelled pixels: an unbiased estimate of the exact one, at the cost of these pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import IGNORE, Size
from siglip2_dense.losses.upsampled import WithGradient
from siglip2_dense.resample import bilinear_corners

Seed = int | Sequence[int]


def sampled_cross_entropy(
    scores: Tensor, labels: Tensor, count: int, seeds: Sequence[Seed], denominator: int | Tensor | None = None
) -> Tensor:
    """``upsampled_cross_entropy(scores, labels, denominator)`` estimated from ``count`` pixels of each image.

    Over all seeds, the means of the value and of its gradient are the exact ones; they are exact for any seed where no
    image has more than ``count`` labelled pixels. The gradient cannot be differentiated again.

    scores: (B, K, h, w) of any float type, computed with in float32 or wider; labels: (B, H, W) int64.
    seeds: of each image; the draw is a function of these and the labels alone.
    """
    return DrawnPixels(labels, count, seeds).cross_entropy(scores, denominator)


class DrawnPixels:
    """Some labelled pixels of images, at which the scores of any number of heads are looked at.

    labels (B, H, W), count, seeds: as in ``sampled_cross_entropy``.
    """

    def __init__(self, labels: Tensor, count: int, seeds: Sequence[Seed]):
        self.size = labels.shape[1:]
        self.pixels, weights = draw_pixels(labels, count, seeds)
        self.labels = labels.flatten(1).gather(1, self.pixels).clamp_(min=0).view(-1, 1)  # without one, the weight is 0
        self.weights = weights.view(-1, 1)
        self.counted = weights.sum()  # they stand for all labelled pixels
        self._of_grids: dict[Size, Corners] = {}

    def cross_entropy(self, scores: Tensor, denominator: int | Tensor | None = None) -> Tensor:
        """``sampled_cross_entropy`` of these pixels."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        total = WithGradient.apply(scores, self._summed)
        return total / (self.counted.clamp(min=1) if denominator is None else denominator)

    def _summed(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of scores (B, K, h, w) times the number of pixels, and its gradient."""
        corners, weights = self.corners(scores.shape[2:]), self.weights.to(scores.dtype)
        values = corners.values(scores.permute(0, 2, 3, 1).flatten(0, 2))
        values -= values.amax(1, keepdim=True)
        own = values.gather(1, self.labels)
        total = values.exp_().sum(1, keepdim=True)
        loss = ((total.log() - own) * weights).sum(dtype=torch.float64)
        values *= weights / total
        values.scatter_add_(1, self.labels, -weights)
        gradient = corners.pull_back(values).view(len(scores), *scores.shape[2:], -1)
        return loss, gradient.permute(0, 3, 1, 2)

    def corners(self, cells: Size) -> Corners:
        """Where the pixels lie in a grid of (h, w) cells."""
        if cells not in self._of_grids:
            self._of_grids[cells] = Corners(self.pixels, self.size, cells)
        return self._of_grids[cells]


class Corners:
    """The four cells around each of n pixels of B images, and their weights: a matrix (B n, B h w) of few entries.

    pixels: (B, n) places in the flat images of ``size``; cells: (h, w).
    """

    def __init__(self, pixels: Tensor, size: Size, cells: Size):
        (height, width), images, device = cells, len(pixels), pixels.device
        y, x = pixels // size[1], pixels % size[1]
        rows, down = (table.to(device)[y] for table in bilinear_corners(height, size[0]))
        columns, across = (table.to(device)[x] for table in bilinear_corners(width, size[1]))
        rows = rows + height * torch.arange(images, device=device)[:, None]
        below, right = rows + (down > 0), columns + (across > 0)  # the last cell has none beside it
        corners = [row * width + column for row in (rows, below) for column in (columns, right)]
        weights = [of_row * of_column for of_row in (1 - down, down) for of_column in (1 - across, across)]
        self.cells, self.weights = (torch.stack(values, -1).flatten(0, 1) for values in (corners, weights))
        # the same by cells: the pixels around each, one cell's after the other's
        order = self.cells.flatten().int().argsort(stable=True)
        self._pixels, self._their_weights = order // 4, self.weights.flatten()[order]
        counts = torch.bincount(self.cells.flatten(), minlength=images * height * width)
        self._first = counts.cumsum(0) - counts

    def values(self, cells: Tensor) -> Tensor:
        """(B h w, K) -> (B n, K): what ``resize_logits`` has at the pixels."""
        return F.embedding_bag(self.cells, cells, mode="sum", per_sample_weights=self.weights.to(cells.dtype))

    def pull_back(self, gradient: Tensor) -> Tensor:
        """(B n, K) -> (B h w, K): from the gradient of ``values(cells)`` to that of ``cells``."""
        weights = self._their_weights.to(gradient.dtype)
        return F.embedding_bag(self._pixels, gradient, self._first, mode="sum", per_sample_weights=weights)


def draw_pixels(labels: Tensor, count: int, seeds: Sequence[Seed]) -> tuple[Tensor, Tensor]:
    """Places (B, count) in the flat labels of each image, and the number of labelled pixels each stands for.

    An image's labelled pixels, in the order of reading, are cut into ``count`` stretches of nearly one length. Of each,
    one pixel is drawn and stands for all of it: neighbours are much alike, so that this varies less than as many pixels
    drawn anywhere. Where fewer pixels are labelled some stretches are empty, and their pixel has weight 0.
    """
    counted = (labels != IGNORE).flatten(1)
    ranks, weights = [], []
    for labelled, seed in zip(counted.sum(1).tolist(), seeds, strict=True):
        edges = np.arange(count + 1) * labelled // count
        length = np.diff(edges)
        ranks.append(edges[:-1] + (np.random.default_rng(seed).random(count) * length).astype(np.int64))
        weights.append(length)
    ranks, weights = (torch.from_numpy(np.stack(values)).to(labels.device) for values in (ranks, weights))
    return _of_ranks(counted, ranks), weights


def _of_ranks(counted: Tensor, ranks: Tensor) -> Tensor:
    """The places (B, n) in ``counted`` (B, N) bool of those that are true, by their numbers; any place beyond them."""
    if counted.device.type == "cpu":  # numpy finds them all in less time than their running number takes
        found = np.zeros(ranks.shape, np.int64)
        for row, own, number in zip(found, counted.numpy(), ranks.numpy(), strict=True):
            if len(places := np.flatnonzero(own)):
                places.take(number, mode="clip", out=row)
        return torch.from_numpy(found)
    places = torch.searchsorted(counted.cumsum(1, dtype=torch.int32), ranks.int() + 1)
    return places.clamp_(max=counted.shape[1] - 1)
