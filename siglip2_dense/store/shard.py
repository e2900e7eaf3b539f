"""One file of stored features: written whole or not at all, read in slices.

The format is safetensors: a header in JSON, then plain arrays. It can be mapped into memory, runs no code, any slice is
one read, and many programs read it. Maps of one padded size lie side by side under that size's name, channels last as
the encoders compute them, so that neighbours are one read into one tensor:

    "512x512/map/11/norm" (rows, h, w, C)    "512x512/prefix/11/norm" (rows, n, C)    "512x512/pooled" (rows, P)
    "512x512/aligned" (rows, h, w, E)

A row is one image or one window; an image has one row, or those of its windows, all of one size. "rows" (images, 4)
says of each image its padded size, its first row and their number. What is no map lies as bytes, image after image:
"known" and one array per target, with the end of each image's in "known.ends" and so on. Images of NaFlex encoders have
their own cells alone, without what stands between images of several shapes.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import TARGETS, Features, Geometry, Sample, Size, Tap
from siglip2_dense.errors import UserError, first_line
from siglip2_dense.files import atomic
from siglip2_dense.store.packing import pack_known

KINDS = {"F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}


def tensors_of(features: Features) -> dict[str, Tensor]:
    """{name: (B, ...)} of features, maps channels last."""
    found = {f"map/{_word(tap)}": values.permute(0, 2, 3, 1) for tap, values in features.maps.items()}
    found |= {f"prefix/{_word(tap)}": values for tap, values in (features.prefix or {}).items()}
    if features.pooled is not None:
        found["pooled"] = features.pooled
    if features.aligned is not None:
        found["aligned"] = features.aligned.permute(0, 2, 3, 1)
    return found


def features_of(tensors: dict[str, Tensor], geometry: Sequence[Geometry], valid: Tensor | None) -> Features:
    """The inverse, as views."""
    maps, prefix = {}, {}
    for name, values in tensors.items():
        kind, _, tap = name.partition("/")
        if kind == "map":
            maps[_tap(tap)] = values.permute(0, 3, 1, 2)
        elif kind == "prefix":
            prefix[_tap(tap)] = values
    aligned = tensors["aligned"].permute(0, 3, 1, 2) if "aligned" in tensors else None
    return Features(maps, tuple(geometry), prefix or None, tensors.get("pooled"), aligned, valid)


def names_of(taps: Sequence[Tap], pooled: bool, aligned: bool) -> set[str]:
    """Of the tensors that hold these outputs."""
    found = {f"{kind}/{_word(tap)}" for tap in taps for kind in ("map", "prefix")}
    return found | ({"pooled"} if pooled else set()) | ({"aligned"} if aligned else set())


def has_cells(name: str) -> bool:
    """Whether the tensor of this name is a map."""
    return name.startswith(("map/", "aligned"))


def _word(tap: Tap) -> str:
    return f"{tap.block}/{'norm' if tap.norm else 'raw'}"


def _tap(word: str) -> Tap:
    block, _, norm = word.partition("/")
    return Tap(int(block), norm == "norm")


def narrowed(features: Features, dtype: torch.dtype, samples: Sequence[Sample]) -> Features:
    """Features on the CPU in the type they are stored in.

    samples: one for each row, to be named. Raises UserError for a value that the type cannot hold.
    """

    def narrow(values):
        if not isinstance(values, Tensor):
            return values if values is None else {key: narrow(value) for key, value in values.items()}
        small = values.to(dtype)
        if not small.isfinite().all():
            row = next(row for row, value in enumerate(small) if not value.isfinite().all())
            most = values[row].abs().max().item()
            what = f"{samples[row].path}: features of up to {most:.3g}"
            if dtype == torch.float16 and np.isfinite(most):
                raise UserError(f'{what} exceed the 65504 of fp16; store them with feature_store.dtype="bf16".')
            raise UserError(f"{what} are no finite numbers; look at the image, or give the encoder precision='fp32'.")
        return small.cpu()

    parts = {name: narrow(getattr(features, name)) for name in ("maps", "prefix", "pooled", "aligned")}
    return replace(features, **parts)


class ShardWriter:
    """Images one after another, held in memory until ``write`` makes one file of them; then, or when it fails, none."""

    def __init__(self):
        self._begin()

    def _begin(self) -> None:
        self.indices: list[int] = []  # of the images in their data set
        self._rows: list[tuple[int, int, int, int]] = []
        self._count: dict[Size, int] = defaultdict(int)
        self._maps: dict[str, list[Tensor]] = defaultdict(list)
        self._bytes: dict[str, list[bytes]] = {name: [] for name in ("known", *TARGETS)}

    def add(self, features: Features, sample: Sample, targets: dict[str, bytes]) -> None:
        """features: of one image, or of its windows, in the type they are stored in. targets: as they were packed."""
        if features.valid is not None:
            features = _own_cells(features)
        size = features.geometry[0].padded
        self.indices.append(sample.index)
        self._rows.append((*size, self._count[size], len(features)))
        self._count[size] += len(features)
        for name, values in tensors_of(features).items():
            self._maps[f"{size[0]}x{size[1]}/{name}"].append(values)
        self._bytes["known"].append(pack_known(sample, features.geometry))
        for name in TARGETS:
            self._bytes[name].append(targets.get(name, b""))

    def write(self, path: Path) -> None:
        """Raises OSError or SafetensorError when the disk does not take it; then there is no file."""
        from safetensors.torch import save_file

        tensors = {"rows": torch.tensor(self._rows)}
        for name, parts in self._bytes.items():
            if any(parts):
                tensors[name] = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
                tensors[f"{name}.ends"] = torch.tensor([len(part) for part in parts]).cumsum(0)
        maps = self._maps
        self._begin()
        for name in list(maps):
            tensors[name] = torch.cat(maps.pop(name)).contiguous()
        with atomic(path) as temporary:
            save_file(tensors, temporary)


def _own_cells(features: Features) -> Features:
    """Of images of one shape that stand in the corner of a grid, their cells alone."""
    first = features.geometry[0]
    height, width = first.box[2:]

    def cut(values: Tensor) -> Tensor:
        rows, columns = (values.shape[2 + a] * first.box[2 + a] // first.padded[a] for a in (0, 1))
        return values[:, :, :rows, :columns]

    return replace(
        features,
        maps={tap: cut(values) for tap, values in features.maps.items()},
        aligned=None if features.aligned is None else cut(features.aligned),
        geometry=tuple(replace(g, padded=(height, width), canvas=(height, width)) for g in features.geometry),
        valid=None,
    )


class Shard:
    """A file of features, open for reading. It holds no more than where things lie: at most 72 bytes for each image."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb") as stream:
                start = 8 + int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(start - 8))
            self._places = {
                name: (KINDS[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0])
                for name, entry in header.items()
                if name != "__metadata__"
            }
            self.rows = self._whole("rows")
            self._ends = {
                name: self._whole(f"{name}.ends") for name in ("known", *TARGETS) if f"{name}.ends" in self._places
            }
        except (OSError, ValueError, KeyError, MemoryError, OverflowError) as error:
            raise UserError(
                f"{path}: no file of features ({first_line(error)}); run siglip2-dense features verify."
            ) from error

    def __len__(self) -> int:
        return len(self.rows)

    def names(self, size: Size) -> list[str]:
        """Of the tensors that images of this padded size have."""
        start = f"{size[0]}x{size[1]}/"
        return [name.removeprefix(start) for name in self._places if name.startswith(start)]

    def shape(self, size: Size, name: str) -> tuple[int, ...]:
        """Of one row."""
        return self._places[f"{size[0]}x{size[1]}/{name}"][1][1:]

    def read(self, size: Size, name: str, first: int, out: Tensor) -> None:
        """Rows from ``first`` on into ``out``, a contiguous (rows, ...) of the stored type: one read."""
        _, shape, start = self._places[f"{size[0]}x{size[1]}/{name}"]
        self._read(start + first * int(np.prod(shape[1:])) * out.element_size(), out)

    def bytes(self, name: str, first: int, last: int) -> list[bytes]:
        """Of a target or of what is known, for the images ``first`` to ``last`` (not included), in one read."""
        if name not in self._ends:
            return [b""] * (last - first)
        start = int(self._ends[name][first - 1]) if first else 0
        cuts = [0, *(self._ends[name][first:last] - start).tolist()]
        held = torch.empty(cuts[-1], dtype=torch.uint8)
        self._read(self._places[name][2] + start, held)
        held = held.numpy().tobytes()
        return [held[a:b] for a, b in pairwise(cuts)]

    def _whole(self, name: str) -> np.ndarray:
        dtype, shape, start = self._places[name]
        out = torch.empty(shape, dtype=dtype)
        self._read(start, out)
        return out.numpy()

    def _read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` from this place of the file on. Not through a map of the file: pages of one that are looked at
        count as this process's memory until the kernel wants them back, and faulting them in takes longer.
        """
        target = memoryview(out.view(-1).view(torch.uint8).numpy())
        with open(self.path, "rb", buffering=0) as stream:
            done = 0
            while done < len(target):
                count = os.preadv(stream.fileno(), [target[done:]], start + done)
                if not count:
                    raise UserError(f"{self.path} is truncated; siglip2-dense features verify, then the same again.")
                done += count
