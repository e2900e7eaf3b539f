"""Cross-entropy at some of the labelled pixels: an unbiased estimate of the exact one, at the cost of these pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import IGNORE, Size
from siglip2_dense.resample import bilinear_corners

Seed = int | Sequence[int]


def sampled_cross_entropy(
    scores: Tensor, labels: Tensor, count: int, seeds: Sequence[Seed], denominator: int | Tensor | None = None
) -> Tensor:
    """``upsampled_cross_entropy(scores, labels, denominator)`` estimated from ``count`` pixels of each image.

    Over all seeds, the means of the value and of its gradient are the exact ones; they are exact for any seed where no
    image has more than ``count`` labelled pixels.

    scores: (B, K, h, w) of any float type, computed with in float32 or wider; labels: (B, H, W) int64.
    seeds: of each image; the draw is a function of these and the labels alone.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    pixels, weights = draw_pixels(labels, count, seeds)
    values = scores_at(scores, pixels, labels.shape[1:])
    errors = F.cross_entropy(
        values.flatten(0, 1), labels.flatten(1).gather(1, pixels).flatten(), ignore_index=IGNORE, reduction="none"
    )
    total = errors @ weights.flatten().to(errors)
    return total / (torch.count_nonzero(labels != IGNORE).clamp(min=1) if denominator is None else denominator)


def draw_pixels(labels: Tensor, count: int, seeds: Sequence[Seed]) -> tuple[Tensor, Tensor]:
    """Places (B, count) in the flat labels of each image, and the number of labelled pixels each stands for.

    An image's labelled pixels, in the order of reading, are cut into ``count`` stretches of nearly one length. Of each,
    one pixel is drawn and stands for all of it: neighbours are much alike, so that this varies less than as many pixels
    drawn anywhere. Where fewer pixels are labelled some stretches are empty, and their pixel has weight 0.
    """
    seen = (labels != IGNORE).flatten(1).cumsum(1, dtype=torch.int32)
    ranks, weights = [], []
    for labelled, seed in zip(seen[:, -1].tolist(), seeds, strict=True):
        edges = np.arange(count + 1) * labelled // count
        length = np.diff(edges)
        ranks.append(edges[:-1] + (np.random.default_rng(seed).random(count) * length).astype(np.int64))
        weights.append(length)
    ranks, weights = (torch.from_numpy(np.stack(values)).to(labels.device) for values in (ranks, weights))
    places = torch.searchsorted(seen, ranks.int() + 1)
    return places.clamp_(max=seen.shape[1] - 1), weights


def scores_at(scores: Tensor, pixels: Tensor, size: Size) -> Tensor:
    """(B, n, K): what ``resize_logits(scores, size)`` has at the flat places (B, n) of some of its pixels."""
    (images, _, height, width), device = scores.shape, scores.device
    rows, down = (table.to(device)[pixels // size[1]] for table in bilinear_corners(height, size[0]))
    columns, across = (table.to(device)[pixels % size[1]] for table in bilinear_corners(width, size[1]))
    rows = rows + height * torch.arange(images, device=device)[:, None]
    below, right = rows + (down > 0), columns + (across > 0)  # the last cell has none beside it
    corners = [y * width + x for y in (rows, below) for x in (columns, right)]
    weights = [y * x for y in (1 - down, down) for x in (1 - across, across)]
    cells = scores.permute(0, 2, 3, 1).reshape(images * height * width, -1)
    corners, weights = torch.stack(corners, -1).flatten(0, 1), torch.stack(weights, -1).flatten(0, 1).to(cells)
    return F.embedding_bag(corners, cells, mode="sum", per_sample_weights=weights).view(*pixels.shape, -1)
