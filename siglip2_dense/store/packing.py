"""A sample's targets and what else is known of it, as bytes: exact, small, and quick to read back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import Geometry, Sample

TARGETS = ("labels", "depth", "normals", "boxes")
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
        intrinsics=None if sample.intrinsics is None else sample.intrinsics.tolist(),
        geometry=[astuple(place) for place in geometry],
    )
    return json.dumps(known).encode()


def unpack(known: bytes, targets: dict[str, bytes]) -> tuple[Sample, tuple[Geometry, ...]]:
    """The inverse; empty bytes are a target that the sample has not."""
    values = json.loads(known)
    geometry = tuple(Geometry(*(_tuples(value) for value in place)) for place in values["geometry"])
    intrinsics = values["intrinsics"]
    sample = Sample(
        path=values["path"],
        original_size=_tuples(values["original_size"]),
        index=values["index"],
        box_names=tuple(values["box_names"]),
        intrinsics=None if intrinsics is None else torch.tensor(intrinsics),
        **{name: _unpack(data) for name, data in targets.items() if data},
    )
    return sample, geometry


def _pack(values: np.ndarray) -> bytes:
    """Type and shape in a line, then the values, compressed; whole numbers in the narrowest type that holds them.

    The first bytes of all values stand before all second ones and so on: those of measurements hardly differ then.
    """
    if values.dtype.kind == "i":
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        kinds = (np.int8, np.int16, np.int32, np.int64)
        values = values.astype(next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max))
    planes = np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8).T
    head = f"{values.dtype.str} {' '.join(map(str, values.shape))}\n".encode()
    return head + zlib.compress(planes.tobytes(), LEVEL)


def _unpack(data: bytes) -> Tensor:
    """Whole numbers as int64, else the type that was packed."""
    end = data.index(b"\n")
    kind, *shape = data[:end].decode().split()
    shape, dtype = tuple(map(int, shape)), np.dtype(kind)
    size = int(np.prod(shape)) * dtype.itemsize
    planes = np.frombuffer(zlib.decompress(memoryview(data)[end + 1 :], bufsize=size or 1), np.uint8)
    values = planes.view(dtype) if dtype.itemsize == 1 else planes.reshape(dtype.itemsize, -1).T.copy().view(dtype)
    return torch.from_numpy(values.reshape(shape).astype(np.int64 if dtype.kind == "i" else dtype))


def _tuples(value):
    return tuple(value) if isinstance(value, list) else value
