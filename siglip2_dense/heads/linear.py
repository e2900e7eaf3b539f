"""The linear probe."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from siglip2_dense.contracts import EncoderFacts, Features
from siglip2_dense.errors import UserError
from siglip2_dense.heads.joining import common_stride, global_width, join
from siglip2_dense.registry import MODELS


@MODELS.register_module()
class LinearHead(nn.Module):
    """Batch norm and a 1x1 convolution on the tapped maps (DINOv2's linear segmentation head, protocol of its 7.4).

    Args:
        facts: of the encoder; the input width comes from it.
        channels: K, from the task.
        layers, norm: which maps, see ``EncoderFacts.taps``; several are joined.
        pooled: "concat" puts the global vector behind each map, at every position.
        stride: pixels per cell at which maps of several strides are joined; by default the finest of them.
    """

    def __init__(
        self,
        facts: EncoderFacts,
        channels: int,
        layers: str | Sequence[int] = "last",
        norm: bool = True,
        pooled: str = "none",
        stride: int | None = None,
    ):
        super().__init__()
        if pooled not in ("none", "concat"):
            raise UserError(f"LinearHead: pooled={pooled!r}; give 'none' or 'concat'.")
        self.facts = facts
        self.taps = facts.taps(layers, norm)
        self.stride = common_stride(facts, self.taps, stride)
        self.pooled = pooled
        width = sum(facts.widths[tap.block] for tap in self.taps)
        if pooled == "concat":
            width += sum(global_width(facts, tap) for tap in self.taps)
        self.bn = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, channels, kernel_size=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: Features) -> Tensor:
        """-> (B, K, h, w) float32 logits at the maps' stride."""
        return self.conv(self.bn(join(features, self.taps, self.facts, self.stride, self.pooled == "concat")))
