"""What heads share: the maps they tap, brought to one stride and joined, and images with cells of their own.

A native-aspect encoder lays images of several shapes in the corner of one grid, and ``Features.valid`` says so. A head
that looks at more than one cell at a time, or at the statistics of all, must not see what stands between the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.contracts import EncoderFacts, Features, Size, Tap
from siglip2_dense.errors import UserError
from siglip2_dense.resample import cut_cells, resize_features, resize_logits


def common_stride(facts: EncoderFacts, taps: Sequence[Tap], stride: int | None) -> int:
    """The stride at which the taps' maps are joined: the named one, else the finest of them."""
    if stride is None:
        return min(facts.strides[tap.block] for tap in taps)
    if facts.multiple % stride:
        raise UserError(f"stride={stride} does not divide {facts.multiple}, to which {facts.name} pads its images.")
    return stride


def global_vector(features: Features, facts: EncoderFacts, tap: Tap) -> Tensor:
    """(B, P): the class token of the tap where the encoder has one, else its own pooled vector.

    DINOv2's heads want each layer's own class token; for SigLIP the MAP output takes its place (SigLIP 2, 3.3.1).
    """
    if "class" in facts.prefix:
        return features.prefix[tap][:, facts.prefix.index("class")]
    return features.pooled


def global_width(facts: EncoderFacts, tap: Tap) -> int:
    return facts.widths[tap.block] if "class" in facts.prefix else facts.pooled_width


def join(features: Features, taps: Sequence[Tap], facts: EncoderFacts, stride: int, pooled: bool) -> Tensor:
    """(B, C, H'/stride, W'/stride) float32: the tapped maps side by side, the global vector of each behind it."""
    size = tuple(side // stride for side in features.geometry[0].padded)
    parts = []
    for tap in taps:
        parts.append(resize_features(features.maps[tap].float(), size))
        if pooled:
            vector = global_vector(features, facts, tap).float()
            parts.append(vector[:, :, None, None].expand(-1, -1, *size))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def own_cells(features: Features) -> list[Features]:
    """Features with ``valid``, image by image in their order, of the cells of each alone; neighbours of one shape stay
    together.
    """
    parts, first = [], 0
    for box, run in groupby(place.box for place in features.geometry):
        own = features[first : first + len(list(run))]
        first += len(own)
        padded, size = own.geometry[0].padded, box[2:]
        maps = {tap: cut_cells(values, padded, box) for tap, values in own.maps.items()}
        geometry = tuple(replace(place, padded=size, box=(0, 0, *size), canvas=size) for place in own.geometry)
        parts.append(Features(maps, geometry, own.prefix, own.pooled))
    return parts


def lay(parts: Sequence[Tensor], size: Size) -> Tensor:
    """Maps (b, K, h, w) of several shapes -> (B, K, *size), one below the other in the batch, 0 beside them."""
    if len(parts) == 1 and parts[0].shape[-2:] == size:
        return parts[0]
    return torch.cat([F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2])) for x in parts])


def each_alone(head: Callable[[Features], Tensor], features: Features, stride: int, finer: int) -> Tensor:
    """The raw map (B, K, finer h, finer w) of a head that looks at neighbouring cells, h x w the canvas's grid of
    ``stride``: what the head says of each image's own cells, whatever else is in the batch.

    A raw map that is a little larger, as that of DPT on an odd grid, is brought to the common size of cells.
    """

    def size(part: Features) -> Size:
        return tuple(side // stride * finer for side in part.geometry[0].padded)

    parts = own_cells(features)
    raws = [(head(own), size(own)) for own in parts]
    return lay([raw if raw.shape[-2:] == own else resize_logits(raw, own) for raw, own in raws], size(features))
