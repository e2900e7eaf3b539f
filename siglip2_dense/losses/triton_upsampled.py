"""The cross-entropy of ``upsampled.py`` as two Triton kernels for GPUs.

They have been compared with plain PyTorch in Triton's interpreter and compiled, but not been run on a GPU.

One program of ``_forward`` goes over the classes of some pixels of a row; of each pixel it keeps one number, the
logarithm of the sum of exponentials. One program of ``_backward`` collects the gradient of some classes of a cell from
all pixels that read it, whose scores it computes again: each number is written once, and summed in the same order
always.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from siglip2_dense.contracts import IGNORE
from siglip2_dense.resample import bilinear_corners

PIXELS, CLASSES = 32, 32  # of a tile; powers of two


@triton.jit
def _scores(top, bottom, left, right, down, across, k, mask, classes):
    """(pixels, classes) scores of pixels of one row; top, bottom: the first cells of two rows, as pointers."""
    left, right = left[:, None] * classes + k[None, :], right[:, None] * classes + k[None, :]
    start = (1 - down) * tl.load(top + left, mask, 0.0) + down * tl.load(bottom + left, mask, 0.0)
    end = (1 - down) * tl.load(top + right, mask, 0.0) + down * tl.load(bottom + right, mask, 0.0)
    return start + across[:, None] * (end - start)


@triton.jit
def _forward(
    cells, labels, rows, columns, downs, acrosses, spread, loss, h, w, height, width, classes,
    NONE: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Writes the logarithms ``spread`` (B, H, W), and ``loss`` (B * H, tiles) summed over counted pixels."""
    line, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = tile * PIXELS + tl.arange(0, PIXELS)
    inside = x < width
    top, down = tl.load(rows + line % height), tl.load(downs + line % height)
    left, across = tl.load(columns + x, inside, 0), tl.load(acrosses + x, inside, 0.0)
    bottom, right = tl.minimum(top + 1, h - 1), tl.minimum(left + 1, w - 1)
    image = cells + line // height * h * w * classes
    top, bottom = image + top * w * classes, image + bottom * w * classes
    label = tl.load(labels + line * width + x, inside, NONE)
    highest = tl.full((PIXELS,), float("-inf"), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)
    own = tl.zeros((PIXELS,), tl.float32)
    for first in range(0, classes, CLASSES):
        k = first + tl.arange(0, CLASSES)
        mask = inside[:, None] & (k < classes)[None, :]
        scores = _scores(top, bottom, left, right, down, across, k, mask, classes)
        own += tl.sum(tl.where(k[None, :] == label[:, None], scores, 0.0), 1)
        scores = tl.where((k < classes)[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
        highest = higher
    logarithm = highest + tl.log(total)
    tl.store(spread + line * width + x, logarithm, inside)
    value = tl.where(label == NONE, 0.0, logarithm - own)
    value = tl.where(label >= classes, float("nan"), value)  # a label without a score: training stops at a NaN
    tl.store(loss + line * tl.num_programs(1) + tile, tl.sum(value))


@triton.jit
def _backward(
    cells, labels, rows, columns, downs, acrosses, row_readers, column_readers, spread, gradient,
    h, w, height, width, classes, NONE: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Writes the ``gradient`` (B, h, w, K) of the sum over counted pixels."""
    cell = tl.program_id(0).to(tl.int64)
    number, i, j = cell // (h * w), cell // w % h, cell % w
    image = cells + number * h * w * classes
    k = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    found = tl.zeros((CLASSES,), tl.float32)
    for y in range(tl.load(row_readers + 2 * i), tl.load(row_readers + 2 * i + 1)):
        top, down = tl.load(rows + y), tl.load(downs + y)
        bottom = tl.minimum(top + 1, h - 1)
        weight_down = tl.where(top == i, 1 - down, 0.0) + tl.where(bottom == i, down, 0.0)
        top, bottom = image + top * w * classes, image + bottom * w * classes
        line = (number * height + y) * width
        last = tl.load(column_readers + 2 * j + 1)
        for first in range(tl.load(column_readers + 2 * j), last, PIXELS):
            x = first + tl.arange(0, PIXELS)
            inside = x < last
            left, across = tl.load(columns + x, inside, 0), tl.load(acrosses + x, inside, 0.0)
            right = tl.minimum(left + 1, w - 1)
            weight = tl.where(left == j, 1 - across, 0.0) + tl.where(right == j, across, 0.0)
            label = tl.load(labels + line + x, inside, NONE)
            weight = tl.where(label == NONE, 0.0, weight_down * weight)
            mask = inside[:, None] & (k < classes)[None, :]
            scores = _scores(top, bottom, left, right, down, across, k, mask, classes)
            probability = tl.exp(scores - tl.load(spread + line + x, inside, 0.0)[:, None])
            error = probability - tl.where(k[None, :] == label[:, None], 1.0, 0.0)
            found += tl.sum(tl.where(mask, weight[:, None] * error, 0.0), 0)
    tl.store(gradient + cell * classes + k, found, k < classes)


class UpsampledCrossEntropy(torch.autograd.Function):
    """(B, K, h, w) scores and (B, H, W) labels -> the sum over counted pixels, float32; NaN for labels beyond K."""

    @staticmethod
    def forward(ctx, scores: Tensor, labels: Tensor) -> Tensor:
        images, classes, *grid = scores.shape
        size, device = labels.shape[1:], scores.device
        cells, labels = scores.float().permute(0, 2, 3, 1).contiguous(), labels.contiguous()
        lows, fractions = zip(*(bilinear_corners(*axis) for axis in zip(grid, size, strict=True)), strict=True)
        tables = [low.int().to(device) for low in lows] + [part.float().to(device) for part in fractions]
        readers = [_readers(low, count).to(device) for low, count in zip(lows, grid, strict=True)]
        programs = images * size[0], triton.cdiv(size[1], PIXELS)
        spread, loss = torch.empty(images, *size, device=device), torch.empty(programs, device=device)
        ctx.sizes = (*grid, *size, classes, IGNORE, PIXELS, CLASSES)
        _forward[programs](cells, labels, *tables, spread, loss, *ctx.sizes)
        ctx.save_for_backward(cells, labels, *tables, *readers, spread)
        ctx.dtype = scores.dtype
        return loss.sum(dtype=torch.float64).float()

    @staticmethod
    def backward(ctx, factor: Tensor):
        if torch.is_grad_enabled():  # with create_graph
            raise RuntimeError("the gradient of an up-sampled loss cannot be differentiated again")
        cells = ctx.saved_tensors[0]
        gradient = torch.empty_like(cells)
        programs = cells[..., 0].numel(), triton.cdiv(cells.shape[-1], CLASSES)
        _backward[programs](*ctx.saved_tensors, gradient, *ctx.sizes)
        return (gradient * factor).permute(0, 3, 1, 2).to(ctx.dtype), None


def _readers(low: Tensor, cells: int) -> Tensor:
    """(cells, 2) int32: the first pixel that reads each cell, and the first after them that does not."""
    cell = torch.arange(cells)
    return torch.stack([torch.searchsorted(low, cell - 1), torch.searchsorted(low, cell, right=True)], 1).int()
