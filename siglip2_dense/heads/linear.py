"""The linear probe."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from siglip2_dense.contracts import EncoderFacts, Features
from siglip2_dense.errors import UserError
from siglip2_dense.heads.joining import common_stride, global_width
from siglip2_dense.heads.joint import raw_maps
from siglip2_dense.registry import MODELS


@MODELS.register_module()
class LinearHead(nn.Module):
    """Batch norm and a 1x1 convolution on the tapped maps.

    As it stands DINOv2's linear segmentation head; with ``norm=False, pooled="concat", batch_norm=False, upsample=4``
    its linear depth head, of one or four layers (DINOv2 paper, 7.4).

    Args:
        facts: of the encoder; the input width comes from it.
        channels: K, from the task.
        layers, norm: which maps, see ``EncoderFacts.taps``; several are joined.
        pooled: "concat" puts the global vector behind each map, at every position.
        stride: pixels per cell at which maps of several strides are joined; by default the finest of them.
        batch_norm: of the joined maps.
        dropout: in training this part of the joined channels, drawn for each image, is 0 before the batch norm
            (DINOv3: 0.1).
        upsample: how many times finer than the joined maps the raw map is.
    """

    def __init__(
        self,
        facts: EncoderFacts,
        channels: int,
        layers: str | Sequence[int] = "last",
        norm: bool = True,
        pooled: str = "none",
        stride: int | None = None,
        batch_norm: bool = True,
        upsample: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        if pooled not in ("none", "concat"):
            raise UserError(f"LinearHead: pooled={pooled!r}; give 'none' or 'concat'.")
        if not isinstance(upsample, int) or upsample < 1:
            raise UserError(f"LinearHead: upsample={upsample!r}; give a whole number from 1 on.")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise UserError(f"LinearHead: dropout={dropout!r}; give the part of the channels, from 0 to below 1.")
        self.facts = facts
        self.taps = facts.taps(layers, norm)
        self.stride = common_stride(facts, self.taps, stride)
        self.pooled = pooled
        self.normalises = batch_norm
        self.upsample, self.dropout = upsample, dropout
        # of each map, and of the vector behind it
        widths = [(facts.widths[tap.block], pooled == "concat" and global_width(facts, tap)) for tap in self.taps]
        self.widths = tuple(int(width) for pair in widths for width in pair)
        width = sum(self.widths)
        self.bn = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.conv = nn.Conv2d(width, channels, kernel_size=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    @property
    def kin(self) -> tuple:
        """Heads that agree in it see the same input, and ``together`` gives the raw maps of all at once.

        One that draws channels to drop sees an input of its own.
        """
        alone = id(self) if self.dropout and self.training else None
        return (LinearHead, self.taps, self.stride, self.pooled, self.normalises, self.training, alone)

    together = staticmethod(raw_maps)

    def forward(self, features: Features) -> Tensor:
        """-> (B, K, upsample h, upsample w) float32, h x w the joined maps' grid."""
        return raw_maps([self], features)[0]
