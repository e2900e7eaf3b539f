"""The linear probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from siglip2_dense.contracts import EncoderFacts, Features
from siglip2_dense.errors import UserError
from siglip2_dense.heads.joining import common_stride, global_width, join, lay, own_cells
from siglip2_dense.registry import MODELS
from siglip2_dense.resample import resize_logits


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
    ):
        super().__init__()
        if pooled not in ("none", "concat"):
            raise UserError(f"LinearHead: pooled={pooled!r}; give 'none' or 'concat'.")
        if not isinstance(upsample, int) or upsample < 1:
            raise UserError(f"LinearHead: upsample={upsample!r}; give a whole number from 1 on.")
        self.facts = facts
        self.taps = facts.taps(layers, norm)
        self.stride = common_stride(facts, self.taps, stride)
        self.pooled = pooled
        self.upsample = upsample
        width = sum(facts.widths[tap.block] for tap in self.taps)
        if pooled == "concat":
            width += sum(global_width(facts, tap) for tap in self.taps)
        self.bn = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.conv = nn.Conv2d(width, channels, kernel_size=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: Features) -> Tensor:
        """-> (B, K, upsample h, upsample w) float32, h x w the joined maps' grid."""
        if features.valid is None:
            return self._finer(self.conv(self.bn(self._joined(features))).float())
        parts = [self._joined(own) for own in own_cells(features)]
        # all images' cells in one column, so that batch norm is of them and of nothing else
        cells = torch.cat([part.movedim(1, 0).flatten(1) for part in parts], dim=1)
        raw = self.conv(self.bn(cells[None, ..., None])).float()[0, ..., 0]
        counts = [part[:, 0].numel() for part in parts]
        raws = [
            self._finer(own.unflatten(1, (len(part), *part.shape[2:])).movedim(0, 1))
            for own, part in zip(raw.split(counts, dim=1), parts, strict=True)
        ]
        return lay(raws, tuple(side // self.stride * self.upsample for side in features.geometry[0].padded))

    def _joined(self, features: Features) -> Tensor:
        return join(features, self.taps, self.facts, self.stride, self.pooled == "concat")

    def _finer(self, raw: Tensor) -> Tensor:
        if self.upsample == 1:
            return raw
        # the published head makes its features finer; with a 1x1 convolution that is the same and many times dearer
        return resize_logits(raw, tuple(side * self.upsample for side in raw.shape[-2:]))
