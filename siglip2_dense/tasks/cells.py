"""Targets summed over the cells of an encoder's grid: what a head with one value for each cell could say at best."""

from __future__ import annotations

from torch import Tensor

from siglip2_dense.contracts import Geometry, Size
from siglip2_dense.resample import overlaps


def sums(maps: Tensor, grid: Size, place: Geometry) -> Tensor:
    """(K, h, w) float32: maps (K, H, W) of an image at its original size, summed over what of it lies in each cell.

    grid: (h, w) cells, which cover the padded canvas of the window that ``place`` is of. A pixel counts in a cell by
    the part of it that lies there; a cell's part in the padding, or beyond the window, holds nothing.
    """
    rows, columns = (
        overlaps(cells, *_span(place, axis), pixels).to(maps.device)
        for axis, (cells, pixels) in enumerate(zip(grid, place.original, strict=True))
    )
    return rows @ maps.float() @ columns.T


def is_overview(place: Geometry) -> bool:
    """Whether a window was shrunk to the view that the encoder saw."""
    return place.window is not None and place.box[2:] != place.window[2:]


def _span(place: Geometry, axis: int) -> tuple[float, float, float, float]:
    """Where the canvas of a window begins and ends along an axis, and the window itself, in pixels of the original."""
    window = place.window or (0, 0, *place.resized)
    begin, length = window[axis], window[axis + 2]
    pixel = length / place.box[axis + 2]  # of the canvas, in pixels of the resized image
    scale = place.original[axis] / place.resized[axis]
    start = (begin - place.box[axis] * pixel) * scale
    return start, start + place.padded[axis] * pixel * scale, begin * scale, (begin + length) * scale
