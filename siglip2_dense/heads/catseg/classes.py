"""Attention between the classes at each cell, in the linear form, which needs only sums over the classes.

With the positive features f(a) = elu(a) + 1 of queries and keys, what class l gets is
f(q_l) M / (f(q_l) z + eps), where M is the sum over all classes of f(k)' v and z that of f(k). So any number of classes
goes through in parts of any size: one pass adds up M and z, a second one uses them. Source: Katharopoulos et al. 2020
("Transformers are RNNs"); Cho et al. 2024 (CAT-Seg), section 3.2.

CAT-Seg trains with 171 classes and fills them up to 256 with copies of one learned token, which are keys and values
too. All copies add the same, so that they cost as much as one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siglip2_dense.heads.catseg.cost import widened
from siglip2_dense.heads.catseg.spatial import HEADS, joined
from siglip2_dense.resample import stretch_features

FILLED = 256  # classes up to which the learned token is repeated
EPSILON = 1e-6


class ClassPart(nn.Module):
    """Attention between classes, whose queries and keys see the text of the class, and an MLP.

    Args:
        width: channels of the volume, and of the text guidance.
        pool: cells a side that are averaged before, in training; none are in evaluation.
    """

    def __init__(self, width: int, pool: int):
        super().__init__()
        self.pool = pool
        self.filler, self.filler_guidance = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k = nn.Linear(2 * width, width), nn.Linear(2 * width, width)  # volume, then text
        self.v = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def sums(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, n, heads, d, d + 1) float32: what t classes add to M and, in the last column, to z; n pooled cells.

        x: (B, t, h, w, C); text: (t, C).
        """
        z = self.norm1(self._pooled(x).flatten(2, 3))
        return self._sums(z, text[:, None])

    def fill(self, count: int) -> Tensor:
        """(heads, d, d + 1) float32: what the token adds beside ``count`` classes, 0 from 256 of them on."""
        one = self._sums(self.norm1(self.filler)[None, None, None], self.filler_guidance[None, None])
        return max(FILLED - count, 0) * one[0, 0]

    def forward(self, x: Tensor, text: Tensor, sums: Tensor) -> Tensor:
        """x: (B, t, h, w, C); text: (t, C); sums: over all classes, filler included -> as x.

        What was pooled is brought back to the cells by ``stretch_features``. It holds x too, which is then added once
        more, as in the published code.
        """
        pooled = self._pooled(x)
        z = pooled.flatten(2, 3)
        q = _features(joined(self.q, self.norm1(z), text[:, None]))  # (B, t, n, heads, d)
        with torch.autocast(x.device.type, enabled=False):
            seen = torch.einsum("btnhd,bnhde->btnhe", q, sums)
            attended = (seen[..., :-1] / (seen[..., -1:] + EPSILON)).flatten(3)
        z = z + attended.to(z.dtype)
        z = z + self.fc2(F.relu(self.fc1(self.norm2(z))))
        z = z.view(pooled.shape)
        if z.shape != x.shape:
            maps = stretch_features(z.flatten(0, 1).permute(0, 3, 1, 2), x.shape[2:4])
            z = maps.permute(0, 2, 3, 1).view(x.shape)
        return x + z

    def _pooled(self, x: Tensor) -> Tensor:
        if not self.training or self.pool == 1:
            return x
        maps = x.flatten(0, 1).permute(0, 3, 1, 2)
        maps = F.avg_pool2d(maps, self.pool, ceil_mode=True, count_include_pad=False)
        return maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def _sums(self, z: Tensor, text: Tensor) -> Tensor:
        k, v = _features(joined(self.k, z, text)), widened(self.v(z)).unflatten(-1, (HEADS, -1))
        with torch.autocast(z.device.type, enabled=False):
            return torch.einsum("btnhd,btnhe->bnhde", k, F.pad(v, (0, 1), value=1))


def _features(x: Tensor) -> Tensor:
    """(..., C) -> (..., heads, d) float32, above 0."""
    return F.elu(widened(x)).unflatten(-1, (HEADS, -1)) + 1
