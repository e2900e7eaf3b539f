"""Linear heads that read the same input, computed together: it is joined and normalised once, and one matrix product
gives the scores of all.

With x the input at mean 0 and variance 1, a head with batch norm says W (gamma x + beta) + b, which is
(W gamma) x + (W beta + b): what is a head's own goes into its weights, and those are small. So neither the scaled input
nor its gradient is ever built. Nor is a global vector laid on every position, since it is the same there: what a head
makes of it is added to all the scores of its image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from siglip2_dense.contracts import Features
from siglip2_dense.heads.joining import global_vector, join, lay, own_cells
from siglip2_dense.resample import resize_logits

ALIGNED = 16
"""Each head's rows of the common product begin at a multiple of this. Then their terms are added in the order in which
they are added alone (measured with MKL and oneDNN on AVX-512), and a head trains to the same bits beside others. An
optimizer that divides a gradient by its own size, as Adam does, would make much of the least difference."""


def raw_maps(heads: Sequence, features: Features) -> list[Tensor]:
    """The raw map (B, K, upsample h, upsample w) float32 of each head; h x w is the grid of the joined maps.

    heads: linear ones of one ``kin``.
    """
    first = heads[0]
    if features.valid is None:
        inputs = [join(features, first.taps, first.facts, first.stride, pooled=False)]
        if first.pooled == "concat":
            vectors = [global_vector(features, first.facts, tap).float() for tap in first.taps]
            inputs.append(torch.cat(vectors, dim=1)[..., None, None])
        inputs = [_dropped(x, first) for x in inputs]
        return [_finer(raw, head) for head, raw in zip(heads, _scores(heads, inputs), strict=True)]
    parts = [
        _dropped(join(own, first.taps, first.facts, first.stride, first.pooled == "concat"), first)
        for own in own_cells(features)
    ]
    # all images' cells in one column, so that batch norm is of them and of nothing else
    cells = torch.cat([part.movedim(1, 0).flatten(1) for part in parts], dim=1)
    counts = [part[:, 0].numel() for part in parts]
    padded = features.geometry[0].padded
    maps = []
    for head, raw in zip(heads, _scores(heads, [cells[None, ..., None]]), strict=True):
        raws = [
            _finer(own.unflatten(1, (len(part), *part.shape[2:])).movedim(0, 1), head)
            for own, part in zip(raw[0, ..., 0].split(counts, dim=1), parts, strict=True)
        ]
        maps.append(lay(raws, tuple(side // head.stride * head.upsample for side in padded)))
    return maps


def _dropped(x: Tensor, head) -> Tensor:
    """x (B, C, h, w) without the channels that the head draws for each image, the others scaled up for it."""
    return F.dropout2d(x, head.dropout) if head.dropout and head.training else x


def _finer(raw: Tensor, head) -> Tensor:
    if head.upsample == 1:
        return raw
    # the published head makes its features finer; with a 1x1 convolution that is the same and many times dearer
    return resize_logits(raw, tuple(side * head.upsample for side in raw.shape[-2:]))


def _scores(heads: Sequence, inputs: Sequence[Tensor]) -> list[Tensor]:
    """(B, K, h, w) float32 of each head.

    inputs: all that is joined (B, C, h, w); or the maps alone, and the vectors (B, C', 1, 1) that stand behind them.
    """
    widths = heads[0].widths
    weights = [head.conv.weight[..., 0, 0] for head in heads]  # (K, all C)
    biases = [head.conv.bias for head in heads]
    if heads[0].normalises:
        inputs, affine = _normalised([head.bn for head in heads], inputs, widths)
        # not a matrix product, which autocast would take to bfloat16
        biases = [b + (w * shift).sum(1) for b, w, (_, shift) in zip(biases, weights, affine, strict=True)]
        weights = [w * scale for w, (scale, _) in zip(weights, affine, strict=True)]
    maps, *vectors = inputs
    own = [_apart(weight, widths, len(inputs)) for weight in weights]
    stacked, rows = [], []
    for of_maps, *_ in own:
        stacked += [of_maps, of_maps.new_zeros(-len(of_maps) % ALIGNED, of_maps.shape[1])]
        rows.append(len(stacked[-2]) + len(stacked[-1]))
    cells = maps.permute(0, 2, 3, 1)  # (B, h, w, C)
    raw = F.linear(cells.flatten(0, 2), torch.cat(stacked)).unflatten(0, cells.shape[:3])
    found = []
    for scores, (_, *of_vectors), bias in zip(raw.split(rows, -1), own, biases, strict=True):
        scores = scores[..., : len(bias)].permute(0, 3, 1, 2).float()
        for vector, weight in zip(vectors, of_vectors, strict=True):
            bias = F.linear(vector[..., 0, 0], weight).float() + bias  # (B, K)
        found.append(scores + bias[..., None, None])
    return found


def _normalised(
    norms: Sequence[nn.Module], inputs: Sequence[Tensor], widths: Sequence[int]
) -> tuple[Sequence[Tensor], list[tuple[Tensor, Tensor]]]:
    """The inputs at mean 0 and variance 1, and for each norm a scale and a shift (all C,) that make its own output.

    In training every norm takes note of the batch's statistics, as it would alone.
    """
    first = norms[0]
    if not first.training:
        statistics = _apart(torch.stack([first.running_mean, first.running_var]), widths, len(inputs))
        deviations = [(norm.running_var + norm.eps).sqrt() for norm in norms]
        affine = []
        for norm, deviation in zip(norms, deviations, strict=True):
            shift = norm.bias + norm.weight * (first.running_mean - norm.running_mean) / deviation
            affine.append((norm.weight * (deviations[0] / deviation), shift))
        return [_plain(first, x, *known) for x, known in zip(inputs, statistics, strict=True)], affine
    positions = inputs[0].shape[2:].numel()
    inputs, added = zip(*(_noted(first, x, positions) for x in inputs), strict=True)
    mean, var = _whole(added, widths)
    for norm in norms:
        norm.running_mean.mul_(1 - norm.momentum).add_(mean)
        norm.running_var.mul_(1 - norm.momentum).add_(var)
        norm.num_batches_tracked.add_(1)
    return inputs, [(norm.weight, norm.bias) for norm in norms]


def _noted(norm: nn.Module, x: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """x normalised by the batch, and what that adds to running statistics: mean and variance (2, c).

    A vector (B, c, 1, 1) stands for one at each of the positions.
    """
    seen = x if x.shape[2:].numel() == positions else x.expand(-1, -1, 2, -1)  # a single value has no variance
    added = x.new_zeros(2, x.shape[1])
    normal = _plain(norm, seen, *added)[:, :, : x.shape[2]]
    images = len(x) * (dist.get_world_size() if isinstance(norm, nn.SyncBatchNorm) else 1)
    # running variances are unbiased: by n / (n - 1), n the values of a channel
    wanted, had = (n / (n - 1) for n in (images * positions, images * seen.shape[2:].numel()))
    return normal, added * added.new_tensor([[1.0], [wanted / had]])


def _plain(norm: nn.Module, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """What the norm makes of these channels with statistics of theirs, which it updates, and without scale or shift."""
    state = {"running_mean": mean, "running_var": var, "weight": torch.ones_like(mean), "bias": torch.zeros_like(mean)}
    return functional_call(norm, {**state, "num_batches_tracked": torch.zeros_like(norm.num_batches_tracked)}, (x,))


def _apart(values: Tensor, widths: Sequence[int], parts: int) -> list[Tensor]:
    """Of values (..., C) of all that is joined, those of the maps and those of the vectors, or all of them.

    widths: channels of a map and of the vector behind it, of the next map and so on.
    """
    if parts == 1:
        return [values]
    pieces = values.split(widths, dim=-1)
    return [torch.cat(pieces[first::2], dim=-1) for first in (0, 1)]


def _whole(parts: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """The inverse of ``_apart``."""
    if len(parts) == 1:
        return parts[0]
    pieces = [part.split(widths[first::2], dim=-1) for first, part in enumerate(parts)]
    return torch.cat([piece for pair in zip(*pieces, strict=True) for piece in pair], dim=-1)
