"""Pixels as an encoder's tower takes them: normalised, and padded with the mean colour to whole patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from siglip2_dense.contracts import Geometry, Size
from siglip2_dense.errors import UserError


def normalised_and_padded(
    images: Tensor | Sequence[Tensor], canvas: Size | None, multiple: int, mean: Tensor, std: Tensor
) -> tuple[Tensor, tuple[Geometry, ...]]:
    """Pixels (B, 3, H', W'), and where each image lies in them.

    images: (3, H, W) RGB, 0 to 255. canvas: height and width that all are padded to, by default the largest; the next
    multiple of ``multiple`` comes on top. mean, std: (3, 1, 1). Raises UserError for an image beyond the canvas.
    """
    sizes = [tuple(image.shape[-2:]) for image in images]
    largest = tuple(max(size[axis] for size in sizes) for axis in (0, 1))
    canvas = largest if canvas is None else tuple(canvas)
    if largest[0] > canvas[0] or largest[1] > canvas[1]:
        raise UserError(
            f"an image of {largest[0]}x{largest[1]} pixels does not fit on the canvas {canvas}; crop the images "
            "in the transforms, or make it larger (model.canvas)."
        )
    padded = tuple(-(-side // multiple) * multiple for side in canvas)
    boxes = [((padded[0] - h) // 2, (padded[1] - w) // 2, h, w) for h, w in sizes]
    geometry = tuple(
        Geometry(padded=padded, box=box, canvas=canvas, resized=size, original=size)
        for box, size in zip(boxes, sizes, strict=True)
    )
    if len(set(sizes)) == 1:
        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        pixels = batch.to(mean.dtype).sub(mean).div_(std)
        if padded != sizes[0]:
            top, left, h, w = boxes[0]
            pixels = nn.functional.pad(pixels, (left, padded[1] - w - left, top, padded[0] - h - top))
        return pixels, geometry
    pixels = mean.new_zeros(len(sizes), 3, *padded)
    for place, image, (top, left, h, w) in zip(pixels, images, boxes, strict=True):
        place[:, top : top + h, left : left + w] = image.to(mean.dtype).sub(mean).div_(std)
    return pixels, geometry


def traced(images: Tensor, multiple: int, mean: Tensor, std: Tensor) -> tuple[Tensor, tuple[Geometry, ...]]:
    """The same of a batch (B, 3, H, W) whose sizes may be symbols, which answer no questions: there is padding in any
    case, even of no pixels, and one place stands for those of all images.
    """
    size = tuple(images.shape[-2:])
    # ONNX rounds quotients towards 0, so that none may be below
    padded = tuple((side + multiple - 1) // multiple * multiple for side in size)
    # not (outer - inner) // 2, of which sympy makes outer / 2 + (-inner) // 2
    top, left = ((outer + inner) // 2 - inner for outer, inner in zip(padded, size, strict=True))
    around = (left, padded[1] - size[1] - left, top, padded[0] - size[0] - top)
    pixels = nn.functional.pad((images.to(mean.dtype) - mean) / std, around)
    return pixels, (Geometry(padded=padded, box=(top, left, *size), canvas=size, resized=size, original=size),)
