"""What boxes and scores of detection cost: to match them with the boxes of an image, and as losses.

Boxes are (centre x, centre y, width, height) or corners (x0, y0, x1, y1), in any one unit; the name of an argument says
which. Source: scenic's OWL-ViT (``projects/owl_vit/losses.py`` and ``model_lib/base_models/box_utils.py``), weights and
epsilons included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA, GAMMA = 0.3, 2.0  # of the focal loss
EPSILON = 1e-6  # in the denominators of IoU and GIoU


def corners(centred: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> x0, y0, x1, y1."""
    centre, size = centred.split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def centred(corners: Tensor) -> Tensor:
    """(..., 4) x0, y0, x1, y1 -> centre x, centre y, width, height."""
    low, high = corners.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union of boxes of corners, (..., 4) each, broadcast against each other."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = size.prod(-1)
    union = _area(a) + _area(b) - shared
    return shared / (union + EPSILON), union


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019), from -1 to 1, of boxes of corners as in ``iou``."""
    value, union = iou(a, b)
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return value - (around - union) / (around + EPSILON)


def focal_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What each score costs where it should be 1, -a (1 - p)^g log p, and where 0, -(1 - a) p^g log(1 - p).

    Source: Lin et al. 2017, with the weights of OWL-ViT.
    """
    p = logits.sigmoid()
    positive = -ALPHA * (1 - p) ** GAMMA * F.logsigmoid(logits)
    negative = -(1 - ALPHA) * p**GAMMA * F.logsigmoid(-logits)
    return positive, negative


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over all scores of the sigmoid focal loss; targets: 0 or 1, of the shape of the logits."""
    positive, negative = focal_parts(logits)
    return (targets * positive + (1 - targets) * negative).sum()


def matching_cost(logits: Tensor, boxes: Tensor, targets: Tensor, target_boxes: Tensor) -> Tensor:
    """(N, M) what it costs that a token stands for a box of the image: class + L1 + -GIoU, each with weight 1.

    logits: (N, Q); boxes: (N, 4) centred; targets: (M, Q), 1 where a box has the name of a query; target_boxes: (M, 4)
    centred. Of a box with several names the class costs are added. What is not finite costs more than all else.
    """
    positive, negative = focal_parts(logits)
    cost = (positive - negative) @ targets.T
    cost = cost + (boxes[:, None] - target_boxes[None]).abs().sum(-1)
    cost = cost - giou(corners(boxes)[:, None], corners(target_boxes)[None])
    finite = cost.isfinite()
    worst = cost[finite].max() if finite.any() else cost.new_zeros(())
    return torch.where(finite, cost, 1.1 * worst.abs() + 10)


def box_losses(boxes: Tensor, target_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over matched boxes of L1, between corners, and of 1 - GIoU.

    boxes, target_boxes: (M, 4) centred. The L1 of the matching is between centres and sizes instead: there a shift
    counts once, here twice.
    """
    boxes, target_boxes = corners(boxes), corners(target_boxes)
    return (boxes - target_boxes).abs().sum(), (1 - giou(boxes, target_boxes)).sum()


def _area(box: Tensor) -> Tensor:
    return (box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1)
