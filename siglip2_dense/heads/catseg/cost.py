"""How near each cell of an image is to each prompt of each class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def costs(cells: Tensor, text: Tensor) -> Tensor:
    """Cosines (B, T, P, h, w) float32.

    cells: (B, E, h, w) in the text space, of any length; text: (T, P, E), unit vectors of P prompts of T classes.
    """
    with torch.autocast(cells.device.type, enabled=False):
        return torch.einsum("behw,tpe->btphw", F.normalize(widened(cells), dim=1), widened(text))


def widened(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def nearest_classes(cells: Tensor, text: Tensor, count: int, at_once: int) -> Tensor:
    """(B, count) int64, ascending: of each image the classes whose highest cosine, over prompts and cells, is highest.

    Of equal classes the first ones. at_once: classes whose cosines are there at a time.
    """
    best = [costs(cells, part).flatten(2).amax(2) for part in text.split(at_once)]
    order = torch.cat(best, dim=1).argsort(dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values
