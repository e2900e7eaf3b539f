"""Heads that fuse four maps from the deepest to the shallowest: DPT as TIPS and DINOv2 have it, and probe3d's."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from siglip2_dense.contracts import EncoderFacts, Features, Size, Tap
from siglip2_dense.errors import UserError
from siglip2_dense.heads.joining import common_stride, each_alone, global_vector, global_width, join
from siglip2_dense.registry import MODELS
from siglip2_dense.resample import resize_features, stretch_features

FIRST_OUTPUT = 0.01
"""Deviation of the last layer's first weights, as in linear heads. Features may be large: with outputs of their size,
the uncertainty of a normals head begins so far from 0 that it may fall to where no gradient is left for the angle."""

GELU = {"tanh": "tanh", "exact": "none"}  # ours -> torch's name of the approximation


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, around which the input is carried.

    activation: "before" each convolution, which then has no bias (TIPS, DINOv2), or "after" it (probe3d).
    """

    def __init__(self, width: int, activation: str = "before"):
        super().__init__()
        self.before = activation == "before"
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=not self.before)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=not self.before)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            return x + self.second(F.relu(self.first(F.relu(x))))
        return x + F.relu(self.second(F.relu(self.first(x))))


class Fusion(nn.Module):
    """What came from the deeper levels, with this level's map added, at twice its size."""

    def __init__(self, width: int, skip: bool):
        super().__init__()
        self.skip = ResidualUnit(width) if skip else None
        self.unit = ResidualUnit(width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            # a level that was halved from an odd grid comes back one cell larger
            x = x + self.skip(resize_features(skip, tuple(x.shape[-2:])))
        # published with the convolution after the stretching: the same, at four times the positions
        return stretch_features(self.out(self.unit(x)), 2)


class Level(nn.Module):
    """One tap's map as a level of the pyramid: 4, 2, 1 or half the base grid, ``width`` channels.

    A map of a pyramid (``resample``) is interpolated to its level; one of a plain transformer gets there by learned
    convolutions, and an eighth, a quarter, half or all of its channels.
    """

    SCALES = (4, 2, 1, 0.5)

    def __init__(self, number: int, inner: int, vector: int, width: int, resample: bool, gelu: str):
        super().__init__()
        outer = inner if resample else inner // 2 ** (3 - number)
        self.scale = self.SCALES[number]
        self.resample = resample
        self.gelu = GELU[gelu]
        self.readout = nn.Linear(inner + vector, inner) if vector else None
        self.project = nn.Conv2d(inner, outer, 1)
        if resample or self.scale == 1:
            self.resize = nn.Identity()
        elif self.scale > 1:
            self.resize = nn.ConvTranspose2d(outer, outer, self.scale, stride=self.scale)
        else:
            self.resize = nn.Conv2d(outer, outer, 3, stride=2, padding=1)
        self.reduce = nn.Conv2d(outer, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor, vector: Tensor | None, grid: Size) -> Tensor:
        """x: (B, C, h, w); vector: (B, P) for the readout; grid: the base grid."""
        if not self.resample:
            x = resize_features(x, grid)
        if self.readout is not None:
            x = self._read(x, vector)
        x = self.project(x)
        if self.resample:
            # a half is rounded up, in whole numbers, since those of an export may be symbols
            x = resize_features(x, tuple(self.scale * side if self.scale >= 1 else (side + 1) // 2 for side in grid))
        x = self.resize(x)
        return self.reduce(x)

    def _read(self, x: Tensor, vector: Tensor) -> Tensor:
        """A linear layer on [cell, global vector] of every cell, the vector's part computed once, and GELU."""
        inner = x.shape[1]
        cells = F.linear(x.permute(0, 2, 3, 1), self.readout.weight[:, :inner])
        common = F.linear(vector, self.readout.weight[:, inner:], self.readout.bias)
        return F.gelu(cells + common[:, None, None], approximate=self.gelu).permute(0, 3, 1, 2)


@MODELS.register_module()
class DPTHead(nn.Module):
    """A pyramid of four maps, fused by residual units (Ranftl et al. 2021, in the form of TIPS; DINOv2's by arguments).

    On a plain transformer the maps become 4, 2, 1 and half times its grid; those of a convolutional encoder, which are
    a pyramid already, are interpolated to the same levels. The raw map is 8 times finer than the base grid, or a little
    more where that is odd (27 -> 224), and covers the padded canvas in any case.

    Args:
        facts, channels: of the encoder and the task.
        layers, norm: which four maps, see ``EncoderFacts.taps``.
        pooled: "readout" gives each map the global vector through a linear layer and GELU; or "none".
        width: channels of the fusion.
        stride: pixels per cell of the base grid; by default that of the maps, or 4 times the finest of several.
        activation: after the 3x3 convolution behind the fusion: "none" (TIPS) or "relu" (DINOv2; TIPS v2's depth).
        gelu: "tanh" (TIPS) or "exact" (DINOv2).
        output: "linear", a 1x1 convolution (TIPS), or "convolutions", three of them and twice the size (DINOv2).
    """

    def __init__(
        self,
        facts: EncoderFacts,
        channels: int,
        layers: str | Sequence[int] = "even4",
        norm: bool = True,
        pooled: str = "readout",
        width: int = 256,
        stride: int | None = None,
        activation: str = "none",
        gelu: str = "tanh",
        output: str = "linear",
    ):
        super().__init__()
        _check("DPTHead", pooled=(pooled, ("none", "readout")), activation=(activation, ("none", "relu")),
               gelu=(gelu, tuple(GELU)), output=(output, ("linear", "convolutions")))  # fmt: skip
        self.facts = facts
        self.taps = _four_taps("DPTHead", facts, layers, norm)
        self.pooled = pooled
        self.stride = _base_stride(facts, self.taps, stride)
        self.activation = activation
        self.levels = nn.ModuleList(
            Level(
                number,
                inner=facts.widths[tap.block],
                vector=global_width(facts, tap) if pooled == "readout" else 0,
                width=width,
                resample=_is_pyramid(facts, self.taps),
                gelu=gelu,
            )
            for number, tap in enumerate(self.taps)
        )
        self.fusion = nn.ModuleList(Fusion(width, skip=number > 0) for number in range(4))  # the deepest first
        self.project = nn.Conv2d(width, width, 3, padding=1)
        self.refine = nn.ModuleList()
        if output == "convolutions":
            self.refine.append(nn.Conv2d(width, width // 2, 3, padding=1))
            self.refine.append(nn.Conv2d(width // 2, 32, 3, padding=1))
        self.output = nn.Conv2d(32 if output == "convolutions" else width, channels, 1)
        self.apply(_initialise)
        nn.init.normal_(self.output.weight, std=FIRST_OUTPUT)

    def forward(self, features: Features) -> Tensor:
        """-> (B, K, 8 h, 8 w) float32, h x w the base grid made even; 16 times it with output="convolutions".

        Of images at their native aspect 8 or 16 times the grid as it is.
        """
        if features.valid is not None:
            return each_alone(self.forward, features, self.stride, finer=16 if self.refine else 8)
        grid = tuple(side // self.stride for side in features.geometry[0].padded)
        maps = []
        for tap, level in zip(self.taps, self.levels, strict=True):
            vector = global_vector(features, self.facts, tap).float() if self.pooled == "readout" else None
            maps.append(level(features.maps[tap].float(), vector, grid))
        x = self.fusion[0](maps[3])
        for fusion, skip in zip(self.fusion[1:], reversed(maps[:3]), strict=True):
            x = fusion(x, skip)
        x = self.project(x)
        if self.activation == "relu":
            x = F.relu(x)
        if self.refine:
            x = F.relu(self.refine[1](stretch_features(self.refine[0](x), 2)))
        return self.output(x).float()


@MODELS.register_module()
class Probe3DHead(nn.Module):
    """Four maps of one size, fused by residual units (probe3d, El Banani et al. 2024, ``DPT`` of its probes).

    Maps of a pyramid are brought to one grid first. The raw map is 16 times finer than the grid; at 8 times, where the
    last 3x3 convolutions are, ``width`` channels are heavy.

    Args:
        facts, channels: of the encoder and the task.
        layers, norm: which four maps, see ``EncoderFacts.taps``.
        pooled: "concat" puts the global vector behind each map (probe3d's way with DINOv2), or "none".
        width: channels of the fusion.
        stride: pixels per cell of the grid; by default that of the maps, or 4 times the finest of several.
    """

    def __init__(
        self,
        facts: EncoderFacts,
        channels: int,
        layers: str | Sequence[int] = "even4",
        norm: bool = False,
        pooled: str = "none",
        width: int = 512,
        stride: int | None = None,
    ):
        super().__init__()
        _check("Probe3DHead", pooled=(pooled, ("none", "concat")))
        self.facts = facts
        self.taps = _four_taps("Probe3DHead", facts, layers, norm)
        self.pooled = pooled
        self.stride = _base_stride(facts, self.taps, stride)
        extra = [global_width(facts, tap) if pooled == "concat" else 0 for tap in self.taps]
        self.reduce = nn.ModuleList(
            nn.Conv2d(facts.widths[tap.block] + more, width, 1) for tap, more in zip(self.taps, extra, strict=True)
        )
        self.skips = nn.ModuleList(ResidualUnit(width, "after") for _ in range(3))  # of the three shallower maps
        self.units = nn.ModuleList(ResidualUnit(width, "after") for _ in range(4))
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.normal_(self.output.weight, std=FIRST_OUTPUT)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Features) -> Tensor:
        """-> (B, K, 16 h, 16 w) float32, h x w the grid."""
        if features.valid is not None:
            return each_alone(self.forward, features, self.stride, finer=16)
        maps = []
        for tap, reduce in zip(self.taps, self.reduce, strict=True):
            joined = join(features, (tap,), self.facts, self.stride, self.pooled == "concat")
            maps.append(stretch_features(reduce(joined), 2))
        x = self.units[3](maps[3])
        for level in (2, 1, 0):
            x = self.units[level](self.skips[level](maps[level]) + x)
        x = F.relu(self.hidden(stretch_features(x, 4)))
        return stretch_features(self.output(x).float(), 2)


def _four_taps(head: str, facts: EncoderFacts, layers: str | Sequence[int], norm: bool) -> tuple[Tap, ...]:
    taps = facts.taps(layers, norm)
    if len(taps) != 4:
        raise UserError(
            f"{head} fuses four maps, but layers={layers!r} names {len(taps)} of the {facts.num_blocks} blocks of "
            f"{facts.name}; name four, or take a LinearHead."
        )
    return taps


def _initialise(module: nn.Module) -> None:
    """Weights of variance 1 / fan-in and no biases: what Flax does, in which TIPS trained.

    torch's own third of that leaves the readout and the transposed convolutions next to silent; DINOv2's 2 / fan-out
    makes raw features of convolutional encoders explode.
    """
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _is_pyramid(facts: EncoderFacts, taps: Sequence[Tap]) -> bool:
    return len({facts.strides[tap.block] for tap in taps}) > 1


def _base_stride(facts: EncoderFacts, taps: Sequence[Tap], stride: int | None) -> int:
    """The named stride, else that of the maps; of a pyramid 4 times the finest, so that 4 times the grid is its map."""
    if stride is None and _is_pyramid(facts, taps):
        return min(4 * common_stride(facts, taps, None), facts.multiple)
    return common_stride(facts, taps, stride)


def _check(head: str, **settings: tuple[str, tuple[str, ...]]) -> None:
    """settings: name -> (given, allowed)."""
    for name, (given, allowed) in settings.items():
        if given not in allowed:
            raise UserError(f"{head}: {name}={given!r}; give {' or '.join(repr(value) for value in allowed)}.")
