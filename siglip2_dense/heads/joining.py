"""What heads share: the maps they tap, brought to one stride and joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from siglip2_dense.contracts import EncoderFacts, Features, Tap
from siglip2_dense.errors import UserError
from siglip2_dense.resample import resize_features


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
