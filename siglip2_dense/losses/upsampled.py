"""Losses at the pixels of labels, of scores that have fewer cells: exact, but the scores of the pixels are never built.

Each equals a loss of ``resize_logits(scores, (H, W))`` in value and gradient, and takes little more memory than the
scores. In all of them scores are (B, K, h, w) of any float type, computed with in float32 or wider, and labels are
(B, H, W) int64 of any size. Gradients cannot be differentiated again. Labels that do not fit the scores raise
ValueError; on a GPU, one without a class makes the loss NaN.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import IGNORE
from siglip2_dense.losses.blocks import LOWEST, Block, summed
from siglip2_dense.threads import computing_alone


def upsampled_cross_entropy(scores: Tensor, labels: Tensor, denominator: int | Tensor | None = None) -> Tensor:
    """Cross-entropy summed over counted pixels and divided by their number, or by ``denominator``.

    ``cross_entropy(resize_logits(scores, (H, W)), labels, denominator)``; 0 where no pixel counts.
    """
    with computing_alone() as threads:
        scores, count = _checked(scores, labels), torch.count_nonzero(labels != IGNORE).clamp(min=1)
        if scores.is_cuda and find_spec("triton"):
            from siglip2_dense.losses.triton_upsampled import UpsampledCrossEntropy

            total = UpsampledCrossEntropy.apply(scores, labels)
        else:
            total = _in_blocks(scores, labels, _cross_entropy, threads, relative=True)
        return total / (count if denominator is None else denominator)


def upsampled_bce(scores: Tensor, labels: Tensor, ignored: str = "negative") -> Tensor:
    """Mean of the binary cross-entropy over classes and pixels; a pixel's target is 1 for its class and 0 for others.

    ignored: what a pixel labelled IGNORE is: "negative" for all classes, as in CAT-Seg's training
        (``cat_seg/cat_seg_model.py``), or "masked" and not in the mean. Raises ValueError for other words.
    """
    if ignored not in ("negative", "masked"):
        raise ValueError(f"ignored={ignored!r}: give 'negative' or 'masked'")
    with computing_alone() as threads:
        scores = _checked(scores, labels)
        if ignored == "negative":
            labels = labels.masked_fill(labels == IGNORE, scores.shape[1])  # counts, and has none of the classes
        total = _in_blocks(scores, labels, _binary_cross_entropy, threads, relative=False)
        return total / (torch.count_nonzero(labels != IGNORE).clamp(min=1) * scores.shape[1])


def _in_blocks(scores: Tensor, labels: Tensor, *how, **options) -> Tensor:
    """``summed``, with the gradient that it computes along, where one is wanted."""
    wanted = torch.is_grad_enabled() and scores.requires_grad
    return WithGradient.apply(scores, lambda cells: summed(cells, labels, *how, **options, with_gradient=wanted))


class WithGradient(torch.autograd.Function):
    """Scores, and a function that gives a value and its gradient -> the value."""

    @staticmethod
    def forward(ctx, scores, compute):
        total, gradient = compute(scores)
        ctx.save_for_backward(gradient)
        return total.to(scores.dtype)

    @staticmethod
    def backward(ctx, factor):
        if torch.is_grad_enabled():  # with create_graph
            raise RuntimeError("the gradient of an up-sampled loss cannot be differentiated again")
        return ctx.saved_tensors[0] * factor, None


def _cross_entropy(block: Block) -> tuple[Tensor, Tensor]:
    """The highest score of each cell is 0. The gradient of a score is its share of the exponentials, less 1 if own."""
    if block.lowest > LOWEST:
        scores = block.exponentials()
        own = block.at_labels()
        total = scores.sum(block.axis)
        values = (total / own).log_()
    else:
        scores = block.straight()
        scores -= scores.amax(block.axis, keepdim=True)
        values = block.at_labels()
        own, total = values.exp(), scores.exp_().sum(block.axis)
        values = total.log() - values
    block.put_at_labels(own - total)
    return (values * block.counted).sum(), block.counted / total


def _binary_cross_entropy(block: Block) -> tuple[Tensor, Tensor]:
    """The gradient of a score is its sigmoid, less 1 if it is that of the pixel's class."""
    scores = block.straight()
    own, positive = block.at_labels(), block.counted * (block.labels < scores.shape[block.axis])
    values = F.softplus(scores).sum(block.axis) - own * positive
    scores.sigmoid_()
    block.put_at_labels(own.sigmoid() - positive)
    return (values * block.counted).sum(), block.counted


def _checked(scores: Tensor, labels: Tensor) -> Tensor:
    """The scores in float32 or wider."""
    if scores.ndim != 4 or labels.ndim != 3 or len(scores) != len(labels):
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} are not of the same images")
    if not labels.is_cuda and labels.numel():
        lowest, highest = (int(label) for label in labels.aminmax())
        if lowest < IGNORE or highest >= scores.shape[1]:
            raise ValueError(f"labels from {lowest} to {highest} for scores of {scores.shape[1]} classes")
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
