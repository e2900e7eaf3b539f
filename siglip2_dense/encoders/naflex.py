"""Images at their own aspect: as many patches as a budget allows (SigLIP 2's NaFlex).

Each image is resized to the grid of patches that its shape and the budget ask for; a batch is then one sequence of
patches for each image, filled up to the longest with nothing. What comes of the encoder is laid on a common grid, each
image in the corner; ``valid_cells`` says which cells are of an image. What stands in the others may be anything and is
not to be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siglip2_dense.contracts import Geometry, Size
from siglip2_dense.errors import UserError
from siglip2_dense.resample import resize_pixels

SCALES = 1e-6, 100.0  # between which the search looks, and
PRECISION = 1e-5  # how near it gets; both of big_vision


class Packed(NamedTuple):
    """A batch of images as patches, N as many as the longest of them has."""

    patches: Tensor  # (B, N, p p 3), each row by row, with the colours of a pixel side by side; 0 where there is none
    coordinates: Tensor  # (B, N, 2) row and column of each patch, 0 where there is none
    valid: Tensor  # (B, N) bool
    grid: Size  # the largest height and width
    geometry: tuple[Geometry, ...]  # the boxes are scaled: ``resized`` is the size that the image came in


def grid_of(size: Size, patch: int, budget: int) -> Size:
    """Rows and columns of patches for an image of ``size`` pixels: the most that are no more than ``budget``.

    Bisection of one scale for both sides, each then rounded up to whole patches, so that small images are enlarged and
    the aspect bends a little. Raises UserError where not even one patch a side is within the budget. Source:
    big_vision, ``pp/proj/image_text/ops_naflex.py``.
    """

    def at(scale: float) -> Size:
        return tuple(max(math.ceil(side * scale / patch), 1) for side in size)

    low, high = SCALES
    while high - low >= PRECISION:
        middle = (low + high) / 2
        if math.prod(at(middle)) <= budget:
            low = middle
        else:
            high = middle
    if math.prod(at(low)) > budget:
        raise UserError(
            f"sequence_length={budget} leaves no patch for an image of {size[0]}x{size[1]} pixels; give the most that "
            "an image may have, such as 256 or 1024."
        )
    return at(low)


def pack(images: Sequence[Tensor], patch: int, budget: int, mean: Tensor, std: Tensor) -> Packed:
    """images: (3, H, W) each, of any sizes, RGB 0-255, float or uint8. mean, std: (3, 1, 1) of such pixels.

    Each image is normalised, resized to its grid in floating point and cut into at most ``budget`` patches. Raises
    UserError for a budget that is too small.
    """
    sizes = [tuple(image.shape[-2:]) for image in images]
    grids = [grid_of(size, patch, budget) for size in sizes]
    grid = tuple(max(side) for side in zip(*grids, strict=True))
    shape = len(grids), max(math.prod(own) for own in grids)
    patches = mean.new_zeros(*shape, 3 * patch * patch)
    coordinates = torch.zeros(*shape, 2, dtype=torch.int64)
    valid = torch.zeros(shape, dtype=torch.bool)
    for number, (image, (h, w)) in enumerate(zip(images, grids, strict=True)):
        pixels = resize_pixels(image.to(mean.dtype).sub(mean).div_(std), (h * patch, w * patch))
        cells = pixels.view(3, h, patch, w, patch).permute(1, 3, 2, 4, 0)
        patches[number, : h * w] = cells.reshape(h * w, -1)
        coordinates[number, : h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w))
        valid[number, : h * w] = True
    padded = tuple(side * patch for side in grid)
    geometry = tuple(
        Geometry(padded, (0, 0, h * patch, w * patch), canvas=padded, resized=size, original=size, scaled=True)
        for size, (h, w) in zip(sizes, grids, strict=True)
    )
    return Packed(patches, coordinates.to(mean.device), valid.to(mean.device), grid, geometry)


def unpack(tokens: Tensor, packed: Packed) -> Tensor:
    """(B, N, C) tokens of the patches -> (B, C, *grid), 0 where there is none."""
    height, width = packed.grid
    places = packed.coordinates[..., 0] * width + packed.coordinates[..., 1]
    places = torch.where(packed.valid, places, height * width)  # one more cell, for what is none
    cells = tokens.new_zeros(len(tokens), height * width + 1, tokens.shape[-1])
    cells.scatter_(1, places[..., None].expand_as(tokens), tokens)
    return cells[:, :-1].unflatten(1, packed.grid).permute(0, 3, 1, 2)


def valid_cells(packed: Packed) -> Tensor:
    """(B, *grid) bool: which cells of an unpacked map are of an image."""
    return unpack(packed.valid[..., None], packed)[:, 0]


def run(tower: nn.Module, packed: Packed, blocks: Sequence[int], final: bool) -> tuple[list, Tensor | None]:
    """Outputs of the ``blocks``, ascending, of timm's ``NaFlexVit``: images see neither each other nor the padding.

    Of each block the tokens (B, N, C) without the final norm, or those and the prefix (B, n, C) where there is one.
    final: also give all tokens of the last block (B, n + N, C) with the final norm, for ``pool``; else the blocks
    behind the last of ``blocks`` are not run.
    """
    # only who is asked is masked, as no one reads what padding says; timm's own mask has a row for each who asks
    mask = None
    if not packed.valid.all():
        mask = F.pad(packed.valid, (tower.num_prefix_tokens, 0), value=True)[:, None, None]
    inputs = dict(patches=packed.patches, patch_coord=packed.coordinates, attn_mask=mask)
    how = dict(return_prefix_tokens=True, output_fmt="NLC", stop_early=not final, intermediates_only=not final)
    result = tower.forward_intermediates(inputs, indices=list(blocks), **how)
    return (result[1], result[0]) if final else (result, None)


def pool(tower: nn.Module, final: Tensor, packed: Packed) -> Tensor:
    """(B, P): the encoder's own global vector, of the final tokens that ``run`` gives."""
    return tower.forward_head(final, pre_logits=True, patch_valid=packed.valid)
