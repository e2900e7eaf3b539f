"""Losses of surface normals: the angle between directions, and the same weighted by how sure the head is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COSINE_MARGIN = 1e-4  # acos has an infinite slope at +-1; so in probe3d
MIN_LENGTH = 1e-6  # a shorter direction is taken as it is: divided by its length, it would have a huge gradient


def angular_loss(direction: Tensor, normals: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels of acos(cosine), in radians, the cosine clamped to +-(1 - 1e-4).

    direction: (B, 3, H, W) of any length; normals: (B, 3, H, W) unit vectors; what is not valid may be anything.
    valid: (B, H, W) bool.

    A scalar, 0 without valid pixels. No gradient at a perfect or an opposite direction, a finite one at the zero
    vector, which counts as 90 degrees. Raises ValueError for other shapes. Source: probe3d, ``evals/utils/losses.py``.
    """
    return _mean(_angles(direction, normals, valid), valid)


def uncertain_angular_loss(direction: Tensor, uncertainty: Tensor, normals: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels of ln(1 + exp(-k pi)) - ln(k^2 + 1) + k angle: the head says how much an angle counts.

    It is the negative logarithm of a density over the sphere, so values below 0 are usual.

    uncertainty: (B, 1, H, W), raw; k = ELU(uncertainty) + 1.01 is above 0.01. For the rest see ``angular_loss``.
    Source: Bae et al. 2021, the angular von Mises-Fisher distribution, with probe3d's k.
    """
    angle = _angles(direction, normals, valid)
    if uncertainty.shape != (len(valid), 1, *valid.shape[1:]):
        raise ValueError(f"uncertainty {tuple(uncertainty.shape)} and valid {tuple(valid.shape)} do not fit")
    kappa = F.elu(torch.where(valid, uncertainty[:, 0].to(angle.dtype), 0)) + 1.01
    return _mean(torch.log1p(torch.exp(-kappa * math.pi)) - torch.log(kappa**2 + 1) + kappa * angle, valid)


def _angles(direction: Tensor, normals: Tensor, valid: Tensor) -> Tensor:
    """(B, H, W) radians in float32 or wider; some finite angle where not valid."""
    if not (direction.shape == normals.shape == (len(valid), 3, *valid.shape[1:])):
        shapes = (tuple(x.shape) for x in (direction, normals, valid))
        raise ValueError("direction {}, normals {} and valid {} do not fit".format(*shapes))
    dtype = torch.promote_types(direction.dtype, torch.float32)
    direction, normals = (torch.where(valid[:, None], x.to(dtype), 1) for x in (direction, normals))
    squares = direction.square().sum(1)  # not a norm over this axis, which is many times slower
    length = torch.where(squares > MIN_LENGTH**2, squares, 1).sqrt()
    cosine = (direction * normals).sum(1) / length
    return torch.acos(cosine.clamp(-1 + COSINE_MARGIN, 1 - COSINE_MARGIN))


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)
