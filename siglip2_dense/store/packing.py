"""A sample's targets and what else is known of it, as bytes: exact, small, and quick to read back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import astuple
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import TARGETS, Geometry, Sample

LEVEL = 1  # of zlib: higher ones take several times as long for a fifth less


def pack_targets(sample: Sample) -> dict[str, bytes]:
    """{target: bytes} of the targets that a sample has, at their own resolution."""
    present = {name: getattr(sample, name) for name in TARGETS}
    return {name: _pack(values.numpy()) for name, values in present.items() if values is not None}


def pack_known(sample: Sample, geometry: Sequence[Geometry]) -> bytes:
    """What is known of a sample beside its image and targets, and where its maps lie."""
    known = dict(
        path=sample.path,
        original_size=sample.original_size,
        index=sample.index,
        box_names=sample.box_names,
        asked=sample.queries,
        intrinsics=None if sample.intrinsics is None else sample.intrinsics.tolist(),
        geometry=[astuple(place) for place in geometry],
    )
    return json.dumps(known).encode()


def unpack(known: bytes, targets: dict[str, Tensor]) -> tuple[Sample, tuple[Geometry, ...]]:
    """The inverse of ``pack_known``, with the targets put in."""
    values = json.loads(known)
    geometry = tuple(Geometry(*(_tuples(value) for value in place)) for place in values["geometry"])
    intrinsics, asked = values["intrinsics"], values.get("asked")
    sample = Sample(
        path=values["path"],
        original_size=_tuples(values["original_size"]),
        index=values["index"],
        # written before a box could have several names, one is a plain string
        box_names=tuple((names,) if isinstance(names, str) else tuple(names) for names in values["box_names"]),
        queries=None if asked is None else tuple(asked),
        intrinsics=None if intrinsics is None else torch.tensor(intrinsics),
        **targets,
    )
    return sample, geometry


class Packed(NamedTuple):
    """A target as bytes, and what it will be: whole numbers as int64, else in the type that was packed."""

    data: memoryview  # compressed
    dtype: np.dtype  # of the values in there,
    lowest: int  # which are counted from this
    shape: tuple[int, ...]

    @classmethod
    def of(cls, data: bytes) -> Packed:
        """Of what ``pack_targets`` gave."""
        end = data.index(b"\n")
        kind, *shape = data[:end].decode().split()
        return cls(memoryview(data)[end + 1 :], np.dtype(kind[:3]), int(kind[3:] or 0), tuple(map(int, shape)))

    @property
    def type(self) -> torch.dtype:
        return torch.int64 if self.dtype.kind in "iu" else torch.from_numpy(np.empty(0, self.dtype)).dtype

    def unpack(self, out: Tensor) -> None:
        """Fill ``out``, a contiguous tensor of this shape and type. Computed by numpy, in the calling thread alone."""
        size = out.numel() * self.dtype.itemsize
        planes = np.frombuffer(zlib.decompress(self.data, bufsize=size or 1), np.uint8)
        values = np.ascontiguousarray(planes.reshape(self.dtype.itemsize, -1).T).view(self.dtype)
        room = out.numpy().reshape(-1)
        np.copyto(room, values.reshape(-1))
        if self.lowest:
            room += self.lowest


def _pack(values: np.ndarray) -> bytes:
    """Type and shape in a line, then the values, compressed; whole numbers in the narrowest type that holds them.

    Fewer than 256 whole numbers on end take a byte each, which says how far one is from the lowest; this stands behind
    the type. The first bytes of all values stand before all second ones and so on: those of measurements hardly differ
    then.
    """
    lowest = ""
    if values.dtype.kind == "i":
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if high - low < 256:
            values, lowest = (values - low).astype(np.uint8), f"{low:+d}"
        else:
            kinds = (np.int16, np.int32, np.int64)
            values = values.astype(next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max))
    planes = np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8).T
    head = f"{values.dtype.str}{lowest} {' '.join(map(str, values.shape))}\n".encode()
    return head + zlib.compress(planes.tobytes(), LEVEL)


def _tuples(value):
    return tuple(value) if isinstance(value, list) else value
