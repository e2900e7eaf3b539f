"""From the raw maps of an image's windows to its class map, at the image's original size.

A raw map is up-sampled to the padded canvas, cut to the image, averaged where windows overlap and resized to the
original image. Each of these steps works on rows and columns apart, so their product does too: with the cells of all
windows in one map ``z``, the logits at the original size are ``rows @ z @ columns.T``. ``argmax_map`` multiplies a few
rows at a time and keeps only the best class; ``blend`` is the same computation step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import Box, Geometry, Size
from siglip2_dense.resample import bilinear_weights, resize_logits
from siglip2_dense.threads import computing_alone, map_in_threads

TILE = 16  # columns that share their cells: wider tiles meet more cells, narrower ones copy more
CPU_BUFFER, GPU_BUFFER = 2**22, 2**28  # bytes of logits at a time and thread: 4 MiB stay in a core's caches
BLENDED_AT_ONCE = 2**26  # logits that are there at a time where windows are no grid

Pieces = tuple[tuple[int, int, int, int, int], ...]
"""Of each window along one axis: cells, padded size, start of the box in it, place in the image, length."""


def blend(
    windows: Sequence[tuple[Tensor, Geometry]], resize: Callable[[Tensor, Size], Tensor] = resize_logits
) -> Tensor:
    """(K, *original) float32 map of one image from the map (K, h, w) of each of its windows.

    Windows may lie anywhere, also one over another. resize: (B, K, h, w) and a size to (B, K, *size).
    """
    raw, geometry = windows[0]
    total = torch.zeros(len(raw), *geometry.resized, device=raw.device)
    count = torch.zeros(geometry.resized, device=raw.device)
    for raw, geometry in windows:
        (top, left, height, width), place = geometry.box, _place(geometry)
        pixels = resize(raw[None], geometry.padded)[0, :, top : top + height, left : left + width]
        inside = (slice(place[0], place[0] + place[2]), slice(place[1], place[1] + place[3]))
        total[:, *inside] += pixels
        count[inside] += 1
    return resize((total / count)[None], geometry.original)[0]


def blended_argmax(windows: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
    """(H, W) int64: ``blend(windows).argmax(0)`` up to rounding, of windows that lie anywhere.

    Their mean is built at the size that they lie in; where that would be too large, some classes at a time.
    """
    raw, geometry = windows[0]
    resized = geometry.resized
    if len(raw) * resized[0] * resized[1] <= BLENDED_AT_ONCE:
        mean = blend([(view, replace(place, original=resized)) for view, place in windows])
        return argmax_map([(mean, Geometry(resized, (0, 0, *resized), resized, resized, geometry.original))])
    top = torch.full(geometry.original, -torch.inf, device=raw.device)
    best = torch.zeros_like(top, dtype=torch.int64)
    at_once = max(BLENDED_AT_ONCE // top.numel(), 1)
    for first in range(0, len(raw), at_once):
        highest, number = blend([(view[first : first + at_once], place) for view, place in windows]).max(0)
        better = highest > top  # of equal ones the first stays
        best, top = torch.where(better, number + first, best), torch.where(better, highest, top)
    return best


def argmax_map(windows: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
    """(H, W) int64: the best class of each pixel of one image at its original size.

    windows: the raw map (K, h, w), any float type, and the geometry of each window; they form a grid, row by row.
    Equals ``blend(windows).argmax(0)`` up to rounding, without building the logits of more than a few rows.
    Raises ValueError where the windows are no grid.
    """
    cells, pieces = _join(windows)
    geometry, device, classes = windows[0][1], cells.device, cells.shape[-1]
    height, width = geometry.original
    blocks = -(-height * width * classes * 4 // (CPU_BUFFER if device.type == "cpu" else GPU_BUFFER))
    step = -(-height // min(blocks, height))
    axes = zip(pieces, geometry.resized, geometry.original, (step, TILE), strict=True)
    # weights (blocks, step, k) and (tiles, TILE, k), with the cells (blocks, k) and (tiles, k) that they belong to
    (rows, row_cells), (columns, column_cells) = ((t.to(device) for t in _axis(*axis)) for axis in axes)
    labels = torch.empty(len(columns) * TILE, len(rows) * step, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def work(block: int, scores: Tensor) -> None:
        with torch.autocast(device.type, enabled=False):
            strip = rows[block] @ cells.index_select(0, row_cells[block]).flatten(1)  # (step, w * K)
            strip = strip.view(step, -1, classes).transpose(0, 1).index_select(0, column_cells.flatten())
            torch.bmm(columns, strip.view(len(columns), -1, step * classes), out=scores)
            labels[:, block * step : (block + 1) * step] = _argmax(scores.view(-1, step, classes))

    def buffer() -> Tensor:
        return columns.new_empty(len(columns), TILE, step * classes)

    with computing_alone() as threads:
        for _ in map_in_threads(work, range(len(rows)), buffer, threads):
            pass
    return labels[:width, :height].T.contiguous()


def _argmax(scores: Tensor) -> Tensor:
    """``scores.argmax(-1)``; on a CPU by numpy, which is several times faster over the last axis."""
    return torch.from_numpy(scores.numpy().argmax(-1)) if scores.device.type == "cpu" else scores.argmax(-1)


def _place(geometry: Geometry) -> Box:
    return geometry.window or (0, 0, *geometry.resized)


def _join(windows: Sequence[tuple[Tensor, Geometry]]) -> tuple[Tensor, tuple[Pieces, Pieces]]:
    """The cells of all windows as one map (h, w, K) float32, and what its rows and its columns are made of."""
    grid: dict[int, dict[int, Tensor]] = {}
    pieces: tuple[dict, dict] = {}, {}
    for raw, geometry in windows:
        place = _place(geometry)
        cells = raw.float().flatten(1).T.contiguous()
        grid.setdefault(place[0], {})[place[1]] = cells.view(*raw.shape[1:], len(raw))
        for axis in (0, 1):
            piece = raw.shape[1 + axis], geometry.padded[axis], geometry.box[axis], place[axis], place[2 + axis]
            pieces[axis][place[axis]] = piece
    if any(list(row) != list(pieces[1]) for row in grid.values()):
        raise ValueError("the windows of an image must form a grid and come row by row")
    cells = torch.cat([torch.cat(list(row.values()), dim=1) for row in grid.values()])
    return cells, tuple(tuple(axis.values()) for axis in pieces)


@lru_cache(maxsize=64)
def _axis(pieces: Pieces, resized: int, original: int, tile: int) -> tuple[Tensor, Tensor]:
    """The matrix that takes one axis from cells to pixels of the original, in tiles of pixels.

    Returns the weights (tiles, tile, k) and the cells (tiles, k) they belong to; k is the most cells that a tile meets,
    and pixels beyond the image have weights 0.
    """
    weights = torch.zeros(resized, sum(cells for cells, *_ in pieces))
    first = 0
    for cells, padded, start, place, length in pieces:
        weights[place : place + length, first : first + cells] = bilinear_weights(cells, padded, start, start + length)
        first += cells
    if not weights.any(1).all():
        raise ValueError("the windows of an image must leave no gap")
    weights /= weights.sum(1, keepdim=True)  # a window's weights sum to 1: this divides by the number of windows
    weights = resize_logits(weights[None, None], (original, first))[0, 0]
    weights = F.pad(weights, (0, 0, 0, -original % tile)).view(-1, tile, first)
    used = weights.any(1)
    index = used.int().argsort(dim=1, descending=True, stable=True)[:, : used.sum(1).max()]
    weights = weights.gather(2, index[:, None].expand(-1, tile, -1))
    return weights, torch.where(used.gather(1, index), index, index[:, :1])  # a cell of weight 0 may not be finite
