"""Boxes between an image's pixels and the frame in whose parts a detection head gives them.

The frame is what the head's grid covers: the padded pixels, of which the image fills a box; of an image that a
native-aspect encoder brought to cells of its own, the image alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from siglip2_dense.contracts import Geometry, Size
from siglip2_dense.losses.detection import centred, corners


def into_frame(boxes: Tensor, geometry: Geometry) -> Tensor:
    """(N, 4) corners in pixels of the image as it was given -> (N, 4) centred, in parts of the frame."""
    offset, size, frame = _frame(geometry, boxes.device)
    return centred((boxes * (size / _across(geometry.resized, boxes.device)) + offset) / frame)


def onto_image(boxes: Tensor, geometry: Geometry) -> Tensor:
    """(N, 4) centred, in parts of the frame -> (N, 4) corners in pixels of the image as it was read.

    Centres and sizes are bounded by the image, while a corner may lie outside: the rule of scenic's evaluation.
    """
    offset, size, frame = _frame(geometry, boxes.device)
    lengths = torch.cat([offset[:2], torch.zeros_like(offset[:2])])  # sizes are not moved
    inside = ((boxes * frame - lengths) / size).clamp(0, 1)
    return corners(inside) * _across(geometry.original, boxes.device)


def _frame(geometry: Geometry, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(4,) each, x y x y in pixels: where the image begins in its frame, its size there, and the size of the frame."""
    top, left, height, width = geometry.box
    size = _across((height, width), device)
    if geometry.scaled:
        return torch.zeros_like(size), size, size
    return _across((top, left), device), size, _across(geometry.padded, device)


def _across(size: Size, device: torch.device) -> Tensor:
    """(height, width) -> (4,) width, height, width, height."""
    height, width = size
    return torch.tensor([width, height, width, height], dtype=torch.float32, device=device)
