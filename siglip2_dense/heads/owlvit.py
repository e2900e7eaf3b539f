"""OWL-ViT's head: every token of the encoder says a box, and how well it fits each text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siglip2_dense.contracts import EncoderFacts, Features, RawDetections, Size
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS

PRIOR = -4.595119850134590  # log(p / (1 - p)) of p = 0.01: what a score is before training
CLASS_STD = 1e-6  # of the class projection's weights, before training


@MODELS.register_module()
class OWLViTHead(nn.Module):
    """A class vector, a shift and a scale, and a box for each of the encoder's final tokens, whose pooling is left out.

    The tokens of encoders that pool their class token (CLIP) are first multiplied with it, and normalised anew; those
    of encoders that pool by attention (SigLIP) are taken as they are. Source: scenic's OWL-ViT
    (``projects/owl_vit/layers.py``; Minderer et al. 2022); transformers has an exact GELU in the box head, as here, and
    so have the published weights there.

    Args:
        facts: of the encoder, which must have been trained with texts.
        channels: of the task; the head itself takes any number of queries.
    """

    pooled = "none"

    def __init__(self, facts: EncoderFacts, channels: int):
        super().__init__()
        if facts.aligned_width is None:
            raise UserError(f"{facts.name} has no text space (or its file no projection); name an encoder that has.")
        self.facts = facts
        self.taps = facts.taps("last", norm=True)
        width = facts.widths[self.taps[0].block]
        self.merges = facts.pooled == "class" and "class" in facts.prefix
        if self.merges:
            self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, facts.aligned_width)
        self.shift, self.scale = nn.Linear(width, 1), nn.Linear(width, 1)
        self.box = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)])
        nn.init.normal_(self.classes.weight, std=CLASS_STD)
        for layer in (self.shift, self.scale, *self.box[:2]):  # LeCun's, as Flax does by default
            nn.init.trunc_normal_(layer.weight, std=width**-0.5, a=-2 * width**-0.5, b=2 * width**-0.5)
        nn.init.zeros_(self.box[2].weight)  # at first every box is its place's
        for layer in (self.classes, self.scale, *self.box):
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.shift.bias, PRIOR)

    def forward(self, features: Features, texts: Tensor | Sequence[Tensor]) -> RawDetections:
        """-> of every cell, row by row. Boxes and what ends in scores are float32, whatever the precision.

        texts: (Q, E) that all images are asked for, or one of these for each image.
        """
        (tap,) = self.taps
        cells = features.maps[tap].float()  # a store has them in half precision
        grid, tokens = tuple(cells.shape[-2:]), cells.flatten(2).transpose(1, 2)  # (B, N, C)
        if self.merges:
            tokens = self.norm(tokens * features.prefix[tap][:, self.facts.prefix.index("class"), None].float())
        hidden = F.gelu(self.box[1](F.gelu(self.box[0](tokens))))
        embeddings = self.classes(tokens).float()
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.float()
            shift, scale = self.shift(tokens)[..., 0], F.elu(self.scale(tokens)[..., 0]) + 1
            boxes = (self.box[2](hidden.float()) + self._places(features, grid)).sigmoid()
        texts = [texts] * len(features) if isinstance(texts, Tensor) else texts
        valid = None if features.valid is None else features.valid.flatten(1)
        return RawDetections(boxes, embeddings, shift, scale, tuple(texts), valid)

    def _places(self, features: Features, grid: Size) -> Tensor:
        """(B or 1, N, 4): the bias of each cell's box; an image with cells of its own has its own grid."""
        device = next(iter(features.maps.values())).device
        if features.valid is None:
            return box_bias(grid, device)[None]
        patch = self.facts.strides[-1]
        places = torch.zeros(len(features), *grid, 4, device=device)
        for place, geometry in zip(places, features.geometry, strict=True):
            rows, columns = (side // patch for side in geometry.box[2:])
            place[:rows, :columns] = box_bias((rows, columns), device).unflatten(0, (rows, columns))
        return places.flatten(1, 2)


def box_bias(grid: Size, device: torch.device | str = "cpu") -> Tensor:
    """(h w, 4) float32, added to a box (centre x, centre y, width, height) before the sigmoid: its cell's lower right
    corner and the size of a cell.

    The paper says the middle of the cell; its code, and so its weights, have the corner. Scenic has the width of a cell
    for both its sides, which on a square grid is the same.
    """
    rows, columns = grid
    y, x = torch.meshgrid(
        torch.arange(1, rows + 1, device=device) / rows, torch.arange(1, columns + 1, device=device) / columns,
        indexing="ij",
    )  # fmt: skip
    place = torch.stack([x, y, torch.full_like(x, 1 / columns), torch.full_like(y, 1 / rows)], dim=-1).flatten(0, 1)
    return torch.log(place + 1e-4) - torch.log1p(1e-4 - place)
