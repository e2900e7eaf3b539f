"""The types that every part of the package speaks: read this file first.

An image goes ``Sample -> FrozenEncoder -> Features -> head -> raw map -> task``. Conventions:

- pixels are RGB, 0-255, (3, H, W); a pixel's centre is at half-integer coordinates;
- ``labels`` are int64 with ``IGNORE`` where a pixel does not count;
- ``depth`` is 0 and ``normals`` are the zero vector where there is no measurement;
- blocks of an encoder count from 0; for convolutional networks they are its stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from siglip2_dense.errors import UserError

IGNORE = -1
"""Label of a pixel that counts neither in a loss nor in a metric."""

TARGETS = ("labels", "depth", "normals", "boxes")
"""The fields of a Sample that a task may be after."""

Size = tuple[int, int]
"""(height, width)."""

Box = tuple[int, int, int, int]
"""(top, left, height, width)."""


def _map_tensors(value, function):
    """Apply ``function`` to each tensor in a field: a tensor, a dict of tensors, or anything else."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return tuple(function(item) for item in value)
    return value


class _OfTensors:
    """``.to`` and ``.pin_memory`` for a dataclass; torch would pass an unknown dataclass by in silence."""

    def _map(self, function):
        changed = {f.name: _map_tensors(getattr(self, f.name), function) for f in fields(self)}
        return replace(self, **changed)

    def to(self, *args, **kwargs):
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self):
        return self._map(lambda tensor: tensor.pin_memory())


@dataclass
class Sample(_OfTensors):
    """One image and what is known of it. All maps have one size when read (checked there).

    At test time the image may be resized while the targets stay at ``original_size``.
    """

    image: Tensor | None = None  # (3, H, W) uint8 RGB; none when it comes from stored features
    labels: Tensor | None = None  # (H, W) int64, IGNORE = not counted
    depth: Tensor | None = None  # (1, H, W) float32, metres unless the data set says otherwise, 0 = none
    normals: Tensor | None = None  # (3, H, W) float32 unit vectors, x right, y down, z into the scene, 0 = none
    boxes: Tensor | None = None  # (N, 4) float32, x0 y0 x1 y1 in pixels of ``image``
    box_names: tuple[tuple[str, ...], ...] = ()  # of each box; several after boxes that overlap were merged
    queries: tuple[str, ...] | None = None  # asked in training: names of its boxes, then of what is not there; or all
    intrinsics: Tensor | None = None  # (3, 3) float32 pinhole camera in pixels of ``image``
    path: str = ""
    original_size: Size | None = None
    index: int = -1  # position in its data set, so that per-image results can be put in order


class Tap(NamedTuple):
    """One block's output, with or without the encoder's final norm."""

    block: int
    norm: bool


@dataclass(frozen=True)
class Geometry:
    """Where an image lies in the grid of its feature map, and what it was cut from."""

    padded: Size  # pixels that the grid covers
    box: Box  # the part of ``padded`` that the image (or window) fills
    canvas: Size  # the common size of the batch before padding to the encoder's multiple
    resized: Size  # the whole image as it was given to the encoder
    original: Size  # the image as it was read
    window: Box | None = None  # for a window: its place in ``resized``
    scaled: bool = False  # whether the encoder scaled it to ``box``, with cells of its own (NaFlex)


@dataclass(frozen=True)
class Alignment:
    """How maps in the text space are made of an encoder that was trained with texts; ``encoders/aligned.py`` says what
    each choice does.
    """

    mode: str = "value"  # "value", "qkv" or "raw"
    residual: str = "none"  # "none", "own" or "class": what is added to the last block's attention
    mlp: bool = False  # whether the last block's MLP follows


@dataclass
class Features(_OfTensors):
    """What an encoder says about a batch of images, wherever it comes from."""

    maps: dict[Tap, Tensor]  # (B, C, h, w)
    geometry: tuple[Geometry, ...]
    prefix: dict[Tap, Tensor] | None = None  # (B, n, C) class and register tokens of the same taps
    pooled: Tensor | None = None  # (B, P) the encoder's own global vector
    aligned: Tensor | None = None  # (B, E, h, w) in the text space, of any length
    valid: Tensor | None = None  # (B, h, w) bool, true = a real token; none = all are

    def __len__(self) -> int:
        return len(self.geometry)

    def __getitem__(self, items: slice) -> Features:
        """A slice of the batch, as views."""
        return replace(self._map(lambda tensor: tensor[items]), geometry=self.geometry[items])

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """Join batches of the same taps and grid."""

        def join(values):
            if values[0] is None:
                return None
            if isinstance(values[0], dict):
                return {key: torch.cat([value[key] for value in values]) for key in values[0]}
            return torch.cat(values)

        joined = {
            f.name: join([getattr(part, f.name) for part in parts]) for f in fields(Features) if f.name != "geometry"
        }
        return Features(**joined, geometry=sum((part.geometry for part in parts), ()))


@dataclass
class RawDetections(_OfTensors):
    """What a detection head says of a batch: for each token a box, and what its scores of any queries are made of.

    Scores are made when they are asked for, since of thousands of queries they would not all fit at once.
    """

    boxes: Tensor  # (B, N, 4) float32 centre x, centre y, width, height, in parts of the frame (``tasks/boxes.py``)
    embeddings: Tensor  # (B, N, E) float32, of any length
    shift: Tensor  # (B, N) float32, of a token's cosines
    scale: Tensor  # (B, N) float32, of what that gives
    texts: tuple[Tensor, ...]  # of each image (Q, E): the vectors that it is asked for
    valid: Tensor | None = None  # (B, N) bool, true = a real token; none = all are

    def __getitem__(self, number: int) -> RawDetections:
        """That of one image, of its real tokens alone, as a batch of one."""
        rows = slice(number, number + 1)
        keep = slice(None) if self.valid is None else self.valid[number]
        own = (getattr(self, name)[rows, keep] for name in ("boxes", "embeddings", "shift", "scale"))
        return RawDetections(*own, self.texts[rows])

    def logits(self, number: int = 0, queries: slice = slice(None)) -> Tensor:
        """(N, Q) float32: (cosine + shift) scale of one image's tokens and queries.

        The texts are not brought to length 1: the mean of several unit vectors gives the mean of their logits. Source:
        ``ClassPredictor`` of scenic's OWL-ViT, with its 1e-6.
        """
        tokens = self.embeddings[number]
        tokens = tokens / (tokens.norm(dim=-1, keepdim=True) + 1e-6)
        return (tokens @ self.texts[number][queries].T + self.shift[number, :, None]) * self.scale[number, :, None]


@dataclass
class Detections(_OfTensors):
    """What was found in one image, the surest first."""

    boxes: Tensor  # (n, 4) float32, x0 y0 x1 y1 in pixels of the image as it was read
    scores: Tensor  # (n,) float32, 0 to 1
    labels: Tensor  # (n,) int64 into the classes that were asked for


@dataclass(frozen=True)
class EncoderFacts:
    """What heads and records need to know of an encoder, so that neither needs the encoder itself."""

    name: str
    fingerprint: str
    widths: tuple[int, ...]  # channels of each block's output
    strides: tuple[int, ...]  # pixels per cell of each block's output
    prefix: tuple[str, ...]  # "class" or "register" for each token before the image tokens
    pooled: str  # "map", "class" or "mean"
    pooled_width: int
    final_norm: bool  # whether a tap can be asked for with the final norm
    mean: tuple[float, float, float]  # of pixels in 0-1
    std: tuple[float, float, float]
    native_grid: Size | None  # of the stored position table; none without a table
    position_kernel: str | None  # how the table is resampled to other grids
    parameters: int
    aligned_width: int | None = None  # E, of the text space; none without texts
    sequence_length: int | None = None  # most patches of an image at its own aspect (NaFlex); none for other encoders

    @property
    def num_blocks(self) -> int:
        return len(self.widths)

    @property
    def multiple(self) -> int:
        """Padded sizes are multiples of this."""
        return max(self.strides)

    def blocks(self, layers: str | Sequence[int]) -> tuple[int, ...]:
        """Block numbers, ascending, that ``layers`` names: "last", "last4", "even4", or the numbers themselves.

        "even4" ends the quarters of the depth, ceil(i L / 4) - 1 for i = 1..4: 2 5 8 11 of 12, 6 13 20 26 of 27 (the
        rule of TIPS). Shallow encoders give fewer than four. Raises UserError for numbers out of range or unsorted.
        """
        count = self.num_blocks
        if layers == "last":
            return (count - 1,)
        if layers == "last4":
            return tuple(range(max(count - 4, 0), count))
        if layers == "even4":
            return tuple(sorted({-(-count * i // 4) - 1 for i in range(1, 5)}))
        if isinstance(layers, str) or not all(isinstance(block, int) for block in layers) or not layers:
            raise UserError(f"layers={layers!r}: give 'last', 'last4', 'even4' or a list of block numbers from 0.")
        blocks = tuple(layers)
        if blocks != tuple(sorted(set(blocks))) or blocks[0] < 0 or blocks[-1] >= count:
            raise UserError(
                f"layers={list(blocks)}: {self.name} has blocks 0 to {count - 1}; give each wanted one once, ascending."
            )
        return blocks

    def taps(self, layers: str | Sequence[int], norm: bool) -> tuple[Tap, ...]:
        """The taps of ``blocks(layers)``; an encoder without a final norm has only raw ones."""
        return tuple(Tap(block, norm and self.final_norm) for block in self.blocks(layers))

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> EncoderFacts:
        """Raises UserError for facts that this version does not know."""
        if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
            raise UserError(f"the file says {', '.join(unknown)} of its encoder, which a newer version wrote; update.")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
