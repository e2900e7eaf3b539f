"""Where raw maps and targets of a training batch are compared: at the pixels of its images, on one canvas.

An image that keeps its size is centred on the padded canvas of the batch, to which the raw maps are brought as a whole.
A native-aspect encoder scales each image to cells of its own, in the corner of the common grid. What stands in the
other cells is not to be read: there each image's cells are cut out and brought to the image's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import Box, Geometry, Sample, Size
from siglip2_dense.errors import UserError
from siglip2_dense.resample import cut_cells


def maps_on_canvas(maps: Tensor, geometry: Sequence[Geometry], resize: Callable[[Tensor, Size], Tensor]) -> Tensor:
    """Maps (B, K, h, w), whatever their stride -> (B, K, *canvas); 0 beside images with cells of their own.

    resize: (B, K, h, w) and a size to (B, any K, *size).
    """
    groups = cells_on_canvas(maps, geometry)
    if len(groups) == 1:
        return resize(*groups[0][1:])
    (height, width), _ = _places(geometry)
    laid = [F.pad(resize(cells, size), (0, width - size[1], 0, height - size[0])) for _, cells, size in groups]
    return torch.cat(laid)


def cells_on_canvas(maps: Tensor, geometry: Sequence[Geometry]) -> list[tuple[slice, Tensor, Size]]:
    """The images that can be brought to pixels together: which they are, their cells (b, K, h, w), and the size that
    these cover, from the first corner of the canvas.
    """
    if not geometry[0].scaled:
        return [(slice(None), maps, geometry[0].padded)]
    size, boxes = _places(geometry)
    if len({place.box for place in geometry}) == len(set(boxes)) == 1:
        return [(slice(None), cut_cells(maps, geometry[0].padded, geometry[0].box), size)]
    return [
        (slice(number, number + 1), cut_cells(maps[number : number + 1], place.padded, place.box), place.resized)
        for number, place in enumerate(geometry)
    ]


def on_canvas(samples: Sequence[Sample], target: str, geometry: Sequence[Geometry], none: float) -> Tensor:
    """(B, ..., *canvas): the field ``target`` of each sample in its image's box, and ``none`` around it.

    Where the samples share memory, as those from a store, it may be that memory. Raises UserError for a sample without
    the target, or with one of another size than its image.
    """
    size, boxes = _places(geometry)
    for sample, (_, _, height, width) in zip(samples, boxes, strict=True):
        values = getattr(sample, target)
        if values is None:
            raise UserError(
                f"{sample.path} has no {target}, which a head is to learn; use data that has, or leave out the head."
            )
        if values.shape[-2:] != (height, width):
            raise UserError(
                f"{sample.path}: {target} of {tuple(values.shape[-2:])} pixels for an image of {(height, width)}; "
                "transforms of training resize targets along (targets=True)."
            )
    maps = [getattr(sample, target) for sample in samples]
    if all(box == (0, 0, *size) for box in boxes):
        return _stack(maps)
    canvas = maps[0].new_full((len(maps), *maps[0].shape[:-2], *size), none)
    for laid, values, (top, left, height, width) in zip(canvas, maps, boxes, strict=True):
        laid[..., top : top + height, left : left + width] = values
    return canvas


def _stack(maps: Sequence[Tensor]) -> Tensor:
    """``torch.stack``, but without a copy where the maps lie one after another in memory that they share."""
    first, length = maps[0], maps[0].numel()
    shared = first.untyped_storage().data_ptr()
    for number, values in enumerate(maps):
        lies_next = values.data_ptr() == first.data_ptr() + number * length * first.element_size()
        if not (lies_next and values.is_contiguous() and values.untyped_storage().data_ptr() == shared):
            return torch.stack(maps)
    return first.as_strided((len(maps), *first.shape), (length, *first.stride()))


def pixels_on_canvas(geometry: Sequence[Geometry]) -> int:
    """Pixels of all images with the padding to their common canvas; of images with cells of their own, theirs alone."""
    sizes = [place.resized if place.scaled else place.canvas for place in geometry]
    return sum(height * width for height, width in sizes)


def _places(geometry: Sequence[Geometry]) -> tuple[Size, list[Box]]:
    """The size of the canvas, and where on it each image lies."""
    if not geometry[0].scaled:
        return geometry[0].padded, [place.box for place in geometry]
    largest = tuple(max(place.resized[axis] for place in geometry) for axis in (0, 1))
    return largest, [(0, 0, *place.resized) for place in geometry]
