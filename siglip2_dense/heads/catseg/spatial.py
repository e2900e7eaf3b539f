"""Attention between the cells of a map, in windows, for each class apart: Swin blocks with guidance.

A window is a rectangle of cells that attend to each other and to nothing else. The plain partition cuts an axis every
12 cells, the shifted one 6 cells earlier. Where the grid is no multiple of 12 the last windows are smaller, and the
shifted partition has small ones at every border: the same as padded, cyclically shifted windows whose foreign cells are
masked, without the padding, the shift and the mask. Source: Cho et al. 2024 (CAT-Seg), section 3.2; Liu et al. 2021
(Swin Transformer), section 3.2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 12  # cells a side
HEADS = 4


def cuts(side: int, shifted: bool) -> list[slice]:
    """The windows along an axis of ``side`` cells; one where a window holds them all, shifted or not."""
    if side <= WINDOW:
        return [slice(0, side)]
    edges = [0, *range(WINDOW // 2 if shifted else WINDOW, side, WINDOW), side]
    return [slice(*pair) for pair in pairwise(edges)]


def window_attention(q: Tensor, k: Tensor, v: Tensor, shifted: bool) -> Tensor:
    """(..., h, w, C) queries, keys and values of four heads -> (..., h, w, C)."""
    rows, columns = (cuts(side, shifted) for side in q.shape[-3:-1])
    return torch.cat(
        [
            torch.cat([_attend(*(x[..., row, column, :] for x in (q, k, v))) for column in columns], dim=-2)
            for row in rows
        ],
        dim=-3,
    )


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(..., h, w, C): every cell of the rectangle to every other."""
    cells = q.shape[-3:-1].numel()
    heads = [x.reshape(-1, cells, HEADS, x.shape[-1] // HEADS).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(v.shape)


class WindowBlock(nn.Module):
    """Attention in windows, whose queries and keys see the guidance beside the volume, and an MLP, each on top of what
    comes in.

    Args:
        width: channels of the volume, and of the guidance.
        shifted: which partition.
    """

    def __init__(self, width: int, shifted: bool):
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k = nn.Linear(2 * width, width), nn.Linear(2 * width, width)  # volume, then guidance
        self.v, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x: (B, t, h, w, C) of t classes; guidance: (B, h, w, C), the same for all -> as x."""
        z = self.norm1(x)
        q, k = (joined(linear, z, guidance[:, None]) for linear in (self.q, self.k))
        x = x + self.proj(window_attention(q, k, self.v(z), self.shifted))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def joined(linear: nn.Linear, x: Tensor, guidance: Tensor) -> Tensor:
    """``linear`` of x (..., C) with the guidance behind it (..., G), which is repeated along axes of length 1.

    Neither the repeated guidance nor the two side by side are ever built.
    """
    own, other = linear.weight.split([x.shape[-1], guidance.shape[-1]], dim=1)
    return F.linear(x, own) + F.linear(guidance, other, linear.bias)


class SpatialPart(nn.Module):
    """A block of plain windows, then one of shifted ones."""

    def __init__(self, width: int):
        super().__init__()
        self.guidance_norm = nn.LayerNorm(width)
        self.plain, self.shifted = WindowBlock(width, shifted=False), WindowBlock(width, shifted=True)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x: (B, t, h, w, C); guidance: (B, h, w, C) -> as x."""
        guidance = self.guidance_norm(guidance)
        return self.shifted(self.plain(x, guidance), guidance)
