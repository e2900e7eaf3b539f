"""What to ask for when an example is shown instead of a name."""

from __future__ import annotations

import torch
from torch import Tensor

from siglip2_dense.contracts import RawDetections
from siglip2_dense.losses.detection import corners, giou, iou

NEAR = 0.8  # of the best overlap is near enough,
FARTHER = 1.2  # and where none overlaps, of the best GIoU, which then is below 0


def query_of(raw: RawDetections, box: Tensor) -> Tensor:
    """(E,), of any length: the class vector of the token that stands for what is in a box of its image.

    raw: of one image; box: (4,) centred, in parts of the frame. Among the tokens whose boxes overlap with it nearly as
    much as any does, it is the one whose vector is least like the mean of all: the mean is the background. Where none
    overlaps, nearness (GIoU) counts in the place of overlap. Source: scenic's OWL-ViT, ``notebooks/inference.py``; the
    paper (A1.7) takes all above an IoU of 0.65 instead.
    """
    boxes, vectors = corners(raw.boxes[0]), raw.embeddings[0]
    overlap, _ = iou(boxes, corners(box))
    least = NEAR * overlap.max()
    if not overlap.any():
        overlap = giou(boxes, corners(box))
        least = FARTHER * overlap.max()
    kept = torch.nonzero(overlap >= least)[:, 0]
    return vectors[kept[(vectors[kept] @ vectors.mean(0)).argmin()]]
