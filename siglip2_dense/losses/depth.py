"""Losses of depth: both compare logarithms, so that a factor counts the same near and far."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 1e-3  # added to both depths before the logarithm, as in DINOv2
MEAN_WEIGHT = 0.15  # what is left of the squared mean beside the variance
STRIDES = (1, 2, 4, 6)  # DINOv2's are twice 1, 2, 3 after the full size, not powers of two


def sig_loss(prediction: Tensor, depth: Tensor, valid: Tensor, warm_up: bool = False) -> Tensor:
    """Scale-invariant loss sqrt(Var(g) + 0.15 mean(g)^2), g = ln(prediction + 1e-3) - ln(depth + 1e-3).

    Mean and variance (over n - 1) are of the valid pixels of the whole batch.

    prediction, depth: (B, 1, H, W), what is not valid may be anything; valid: the same shape, bool.
    warm_up: sqrt(0.15 mean(g)^2) alone, the first steps of DINOv2's training.

    A scalar, 0 without valid pixels; its gradient is finite at a perfect prediction too, where it is 0. Raises
    ValueError for unequal shapes. Source: DINOv2, ``eval/depth/models/losses/sigloss.py``, after AdaBins.
    """
    difference = _log_difference(prediction, depth, valid)
    count = valid.sum().to(difference.dtype)
    mean = difference.sum() / count.clamp(min=1)
    offset = math.sqrt(MEAN_WEIGHT) * mean
    if warm_up:
        return offset.abs()
    deviation = torch.where(valid, difference - mean, 0)
    spread = torch.linalg.vector_norm(deviation) / (count - 1).clamp(min=1).sqrt()
    return torch.linalg.vector_norm(torch.stack([spread, offset]))  # a norm has the gradient 0 at 0, a root none


def gradient_loss(prediction: Tensor, depth: Tensor, valid: Tensor, legacy: bool = False) -> Tensor:
    """Differences of g (see ``sig_loss``) two pixels apart, down and across, at strides of 1, 2, 4 and 6.

    At each stride the sum of |g[i] - g[i + 2]| over pairs that are both valid is divided by the number of valid pixels;
    the strides are added up. Arguments, errors and the empty case are those of ``sig_loss``.

    legacy: the axes of DINOv2's code, which slices batch and channel instead of rows and columns: it compares images
        of the batch, and is exactly 0 for one or two of them (``eval/depth/models/losses/gradientloss.py``; probe3d and
        DINOv3 have the spatial form). The idea is MegaDepth's.
    """
    difference = _log_difference(prediction, depth, valid)
    if not legacy:
        difference, valid = (x.permute(2, 3, 0, 1) for x in (difference, valid))
    loss = difference.new_zeros(())
    for stride in STRIDES:
        g, known = difference[::stride, ::stride], valid[::stride, ::stride]
        down = (g[:-2] - g[2:]).abs() * (known[:-2] & known[2:])
        across = (g[:, :-2] - g[:, 2:]).abs() * (known[:, :-2] & known[:, 2:])
        loss = loss + (down.sum() + across.sum()) / known.sum().clamp(min=1)
    return loss


def _log_difference(prediction: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """g in float32 or wider, 0 where not valid: there both are 1 before the logarithm, as NaN times 0 is NaN."""
    if not prediction.shape == depth.shape == valid.shape:
        shapes = (tuple(x.shape) for x in (prediction, depth, valid))
        raise ValueError("prediction {}, depth {} and valid {} must have one shape".format(*shapes))
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    prediction, depth = (torch.where(valid, x.to(dtype), 1) for x in (prediction, depth))
    return torch.log(prediction + EPSILON) - torch.log(depth + EPSILON)
