"""Targets of a training batch, laid where their images lie on the padded canvas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from siglip2_dense.contracts import Geometry, Sample
from siglip2_dense.errors import UserError


def on_canvas(samples: Sequence[Sample], target: str, geometry: Sequence[Geometry], none: float) -> Tensor:
    """(B, ..., *padded): the field ``target`` of each sample in its image's box, and ``none`` around it.

    Raises UserError for a sample without the target, or with one of another size than its image.
    """
    canvas = []
    for sample, place in zip(samples, geometry, strict=True):
        top, left, height, width = place.box
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
        laid = values.new_full((*values.shape[:-2], *place.padded), none)
        laid[..., top : top + height, left : left + width] = values
        canvas.append(laid)
    return torch.stack(canvas)
