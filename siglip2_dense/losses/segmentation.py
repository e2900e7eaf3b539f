"""Losses of segmentation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import IGNORE


def cross_entropy(logits: Tensor, labels: Tensor, denominator: int | None = None) -> Tensor:
    """Pixel cross-entropy, summed over counted pixels and divided by their number, or by ``denominator``.

    logits: (B, K, H, W) float32; labels: (B, H, W) int64. 0 where no pixel counts.
    """
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (denominator or (labels != IGNORE).sum().clamp(min=1))
