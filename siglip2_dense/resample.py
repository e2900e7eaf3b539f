"""Every interpolation of the package, by what is interpolated.

Centres of pixels and cells are at half-integer coordinates throughout (``align_corners=False``), except inside the
published heads (``stretch_features``). No other module calls ``interpolate`` or ``cv2.resize``: classes must not be
blended, and scores not in half precision.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import Box, Size


def resize_logits(logits: Tensor, size: Size) -> Tensor:
    """(B, K, h, w) scores, or predicted depths, of any float type -> (B, K, *size) float32, bilinear."""
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def resize_directions(maps: Tensor, size: Size) -> Tensor:
    """(B, 3, h, w) directions of any length and float type -> (B, 3, *size) float32 unit vectors.

    Unit vectors, bicubic, unit vectors again (the order of TIPS). One shorter than 1e-6, which has no direction to
    speak of and would have a huge gradient, stays as it is.
    """
    unit = _unit(maps.float())
    if _same(maps.shape[-2:], size):
        return unit
    return _unit(F.interpolate(unit, size=size, mode="bicubic", align_corners=False))


def _unit(vectors: Tensor) -> Tensor:
    """``F.normalize`` over the axis 1, several times faster, but for short vectors."""
    squares = vectors.square().sum(1, keepdim=True)
    return vectors * torch.where(squares > 1e-12, squares, 1).rsqrt()


def resize_features(maps: Tensor, size: Size) -> Tensor:
    """(B, C, h, w) -> (B, C, *size): cells are averaged going down and bilinear going up.

    Where the sizes of an export are symbols it goes up, unless it goes down whatever they stand for.
    """
    if _same(maps.shape[-2:], size):
        return maps
    if all(_always(new <= old) for new, old in zip(size, maps.shape[-2:], strict=True)):
        return F.interpolate(maps, size=size, mode="area")
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def stretch_features(maps: Tensor, to: int | Size) -> Tensor:
    """(B, C, h, w) -> (B, C, to h, to w), or (B, C, *to), bilinear; the corner cells stay the corners.

    How DPT heads double their maps, and CAT-Seg undoes its pooling (``align_corners=True``); their published weights
    expect it.
    """
    size = tuple(to * side for side in maps.shape[-2:]) if isinstance(to, int) else tuple(to)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def resize_positions(table: Tensor, old: Size, new: Size, prefix: int, antialias: bool = True) -> Tensor:
    """A position table (1, prefix + old cells, C) for another grid: bicubic, in float32.

    The entries of the ``prefix`` tokens stay as they are. With antialiasing it is the kernel of timm's dynamic image
    size; without, another one where the grid grows too (torch's two bicubic kernels differ), which CAT-Seg has.
    """
    if _same(old, new):
        return table
    grid = table[:, prefix:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=antialias)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(table.dtype)
    return torch.cat([table[:, :prefix], grid], dim=1)


def _same(one: Size, other: Size) -> bool:
    """Whether two sizes are equal; those of an export, whatever its symbols stand for."""
    return all(_always(a == b) for a, b in zip(one, other, strict=True))


def _always(answer: bool | torch.SymBool) -> bool:
    """Whether it is true, without making it a condition of an export."""
    if isinstance(answer, bool):
        return answer
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(answer)


def resize_pixels(pixels: Tensor, size: Size, antialias: bool = True) -> Tensor:
    """(C, H, W) or (B, C, H, W) pixels in floating point -> (..., *size): bilinear.

    With antialiasing where they get fewer it is how SigLIP 2's native-aspect encoders see images, TensorFlow's
    ``resize`` with ``antialias=True``; without, how CAT-Seg makes its views.
    """
    batch = pixels if pixels.ndim == 4 else pixels[None]
    resized = F.interpolate(batch, size=size, mode="bilinear", antialias=antialias, align_corners=False)
    return resized if pixels.ndim == 4 else resized[0]


def cut_cells(maps: Tensor, padded: Size, box: Box) -> Tensor:
    """(..., h, w) cells that cover ``padded`` pixels -> those that lie in ``box``, as a view.

    Cut before anything is interpolated, so that an image's result takes nothing from what stands beside it. Raises
    ValueError where the box does not end between cells.
    """
    for axis in (0, 1):
        cells = maps.shape[axis - 2]
        start, stop = (edge * cells / padded[axis] for edge in (box[axis], box[axis] + box[axis + 2]))
        if start != int(start) or stop != int(stop):
            raise ValueError(f"the box {box} does not end between cells where {tuple(maps.shape[-2:])} cover {padded}")
        maps = maps.narrow(axis - 2, int(start), int(stop) - int(start))
    return maps


@lru_cache(maxsize=64)
def bilinear_corners(cells: int, pixels: int) -> tuple[Tensor, Tensor]:
    """What ``resize_logits`` reads along one axis: (low, fraction) of ``pixels`` values taken from ``cells`` ones.

    Pixel i is (1 - fraction[i]) x[low[i]] + fraction[i] x[low[i] + 1], of the last cell x[low[i]] alone, where the
    fraction is 0. low: int64; fraction: float64. They are shared by all callers, like what the next two functions give.
    """
    centre = (torch.arange(pixels, dtype=torch.float64) + 0.5) * (cells / pixels) - 0.5
    centre = centre.clamp(0, cells - 1)
    low = centre.floor()
    return low.long(), centre - low


@lru_cache(maxsize=64)
def bilinear_runs(cells: int, pixels: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The pixels along one axis, by the two cells between whose centres they lie: ``cells + 1`` runs.

    Pixel i of run c is (1 - f) x[c - 1] + f x[c] with f = first[c] + i step, where the cells beside the outermost ones
    have their values. Returns the run of each pixel (pixels,); the pixels of each run (S, runs), of which the longest
    has S, with the number ``pixels`` where a run has ended; ``first`` (runs,) float64; ``step``.
    """
    step = cells / pixels
    centre = (torch.arange(pixels, dtype=torch.float64) + 0.5) * step - 0.5
    run = centre.floor().long() + 1
    length = torch.bincount(run, minlength=cells + 1)
    begin = length.cumsum(0) - length
    within = torch.arange(int(length.max()))[:, None]
    members = torch.where(within < length, begin + within, pixels)
    first = torch.where(length > 0, centre[begin.clamp(max=pixels - 1)] - torch.arange(-1, cells), 0)
    return run, members, first, step


@lru_cache(maxsize=64)
def bilinear_weights(cells: int, pixels: int, start: int = 0, stop: int | None = None) -> Tensor:
    """(stop - start, cells) float32: the rows of the matrix that takes ``cells`` values to ``pixels`` ones.

    ``bilinear_weights(h, H) @ x`` is what ``resize_logits`` does along one axis. A slice of its rows is how scores are
    brought to an image that fills only a part of the padded canvas, without building the rest.
    """
    low, fraction = (values[start:stop] for values in bilinear_corners(cells, pixels))
    weights = torch.zeros(len(low), cells, dtype=torch.float64)
    rows = torch.arange(len(low))
    weights[rows, low] += 1 - fraction
    weights[rows, (low + 1).clamp(max=cells - 1)] += fraction
    return weights.float()


@lru_cache(maxsize=64)
def overlaps(cells: int, start: float, stop: float, low: float, high: float, pixels: int) -> Tensor:
    """(cells, pixels) float32: how much of each pixel, 0 to 1, lies in each of equal cells from ``start`` to ``stop``
    (in pixels), of their part from ``low`` to ``high`` alone.

    ``overlaps(...) @ x`` are the sums of an image over its cells along one axis.
    """
    edges = torch.linspace(start, stop, cells + 1, dtype=torch.float64).clamp(max(low, 0), min(high, pixels))
    pixel = torch.arange(pixels, dtype=torch.float64)
    inside = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return inside.clamp(min=0).float()


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3), bilinear; the kernel of the published segmentation recipes (OpenCV)."""
    import cv2

    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) integers -> (*size), nearest, so that no class is invented (OpenCV's choice of the nearest)."""
    import cv2

    return cv2.resize(labels.astype(np.int32), (size[1], size[0]), interpolation=cv2.INTER_NEAREST).astype(labels.dtype)


def warp_image(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, each point moved by the affine ``matrix`` (2, 3); bilinear, black comes in from outside."""
    import cv2

    half = np.full(2, 0.5)  # OpenCV counts from the centre of the first pixel
    shift = matrix[:, :2] @ half + matrix[:, 2] - half
    return cv2.warpAffine(image, np.column_stack([matrix[:, :2], shift]), image.shape[1::-1], flags=cv2.INTER_LINEAR)


def warp_places(size: Size, matrix: np.ndarray) -> np.ndarray:
    """(*size) int64: for each pixel of the image moved by ``matrix``, as above, the number of the old pixel that its
    centre lies in, row by row, or -1 outside; for what must not be blended.
    """
    height, width = size
    y, x = np.ogrid[:height, :width]
    back = np.linalg.inv(matrix[:, :2])
    origin = back @ (0.5 - matrix[:, 2])  # where the first pixel's centre comes from
    column = np.floor(back[0, 0] * x + back[0, 1] * y + origin[0]).astype(np.int64)
    row = np.floor(back[1, 0] * x + back[1, 1] * y + origin[1]).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(inside, row * width + column, -1)
