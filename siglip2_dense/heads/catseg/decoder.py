"""From the aggregated volume to scores four times as fine, with guidance from the middle of the encoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from siglip2_dense.heads.catseg.cost import widened

GROUP = 16  # channels that are normalised together


class Guidance(nn.Sequential):
    """A map of the encoder, ``factor`` times finer, narrowed in two steps: (B, C, h, w) -> (B, narrow, f h, f w)."""

    def __init__(self, channels: int, middle: int, narrow: int, factor: int):
        finer = nn.ConvTranspose2d(channels, middle, factor, stride=factor)
        super().__init__(finer, nn.Conv2d(middle, narrow, 3, padding=1), nn.ReLU())


class UpBlock(nn.Module):
    """Twice as fine, joined with guidance of ``guided`` channels, and two convolutions."""

    def __init__(self, channels: int, guided: int, out: int):
        super().__init__()
        self.finer = nn.ConvTranspose2d(channels, channels - guided, 2, stride=2)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(out // GROUP, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(out // GROUP, out)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x: (B t, C, h, w), an image's t classes one after another; guidance: (B, guided, 2h, 2w) of each image
        -> (B t, out, 2h, 2w). The guidance's part of the convolution is done once for all classes.
        """
        x = self.finer(x)
        own, other = self.conv1.weight.split([x.shape[1], guidance.shape[1]], dim=1)
        x = F.conv2d(x, own, padding=1).unflatten(0, (guidance.shape[0], -1))
        x = (x + F.conv2d(guidance, other, padding=1)[:, None]).flatten(0, 1)
        x = F.relu(self.norm1(x), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)


class Decoder(nn.Module):
    """Two steps up and the scores."""

    def __init__(self, width: int):
        super().__init__()
        self.up1 = UpBlock(width, guided=32, out=64)
        self.up2 = UpBlock(64, guided=16, out=32)
        self.score = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x: Tensor, guidance: tuple[Tensor, Tensor]) -> Tensor:
        """x: (B, t, h, w, C); guidance: (B, 32, 2h, 2w) and (B, 16, 4h, 4w) -> (B, t, 4h, 4w) float32."""
        maps = x.flatten(0, 1).permute(0, 3, 1, 2)
        maps = self.up2(self.up1(maps, guidance[0]), guidance[1])
        return widened(self.score(maps)).unflatten(0, x.shape[:2]).squeeze(2)
