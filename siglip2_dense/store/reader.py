"""Images of a store read back as Features and Samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import Features, Sample, Size, Tap
from siglip2_dense.store.key import DTYPES
from siglip2_dense.store.packing import Packed, unpack
from siglip2_dense.store.shard import Shard, features_of, has_cells, names_of
from siglip2_dense.store.store import Store


class Place(NamedTuple):
    """Where an image's features lie."""

    shard: Shard
    number: int  # of the image in the shard
    size: Size  # padded
    first: int  # row
    rows: int


class Reader:
    """A store's views, open, and what is wanted of them.

    Args:
        taps, pooled: of what the store holds.
        targets: the fields of a sample to be read along.
    """

    def __init__(self, store: Store, taps: Sequence[Tap], pooled: bool, targets: Sequence[str], views: int = 1):
        self.store, self.targets = store, tuple(targets)
        self.wanted = names_of(taps, pooled, store.key["aligned"] is not None)
        self.dtype = DTYPES[store.key["dtype"]]
        self.views = [store.open(view) for view in range(views)]

    def sizes(self) -> set[Size]:
        """The padded sizes of all images."""
        return {tuple(size) for view in self.views for shard in view for size in np.unique(shard.rows[:, :2], axis=0)}

    def place(self, view: int, position: int) -> Place:
        number, inside = divmod(position, self.store.images_per_shard)
        shard = self.views[view][number]
        height, width, first, rows = shard.rows[inside].tolist()
        return Place(shard, inside, (height, width), first, rows)

    def read(self, places: Sequence[Place], take: Callable[..., Tensor]) -> tuple[Features, list[Sample]]:
        """The features of images, in the type they are stored in, and the samples, without images.

        take: gives a tensor of a name, shape and type to be filled.
        """
        samples, geometry = [], []
        targets = {name: self._targets(name, places, take) for name in self.targets}
        for number, known in enumerate(self._bytes("known", places)):
            has = {name: column[number] for name, column in targets.items() if column[number] is not None}
            sample, own = unpack(known, has)
            samples.append(sample)
            geometry.extend(own)
        shard, size = places[0].shard, places[0].size
        names = [name for name in shard.names(size) if name in self.wanted]
        alike = len({place.size for place in places}) == 1
        tensors = {}
        for name in names:
            if alike or not has_cells(name):
                shape = shard.shape(size, name)
                tensors[name] = take(name, (len(geometry), *shape), self.dtype)
                self._fill(name, places, tensors[name])
            else:
                tensors[name] = self._laid(name, places)
        valid = None
        if geometry[0].scaled:  # cells of their own: those of an image stand in the corner of the largest grid
            size = tuple(max(side) for side in zip(*(place.padded for place in geometry), strict=True))
            grid = next(values.shape[1:3] for name, values in tensors.items() if has_cells(name))
            valid = torch.zeros(len(geometry), *grid, dtype=torch.bool)
            for cells, place in zip(valid, geometry, strict=True):
                rows, columns = (grid[axis] * place.padded[axis] // size[axis] for axis in (0, 1))
                cells[:rows, :columns] = True
            geometry = [replace(place, padded=size, canvas=size) for place in geometry]
        return features_of(tensors, geometry, valid), samples

    def _bytes(self, name: str, places: Sequence[Place]) -> list[bytes]:
        """What is known of each image, or one of its targets; empty where it has none."""
        found = []
        for run in _runs(places, lambda a, b: a.shard is b.shard and a.number + 1 == b.number):
            found += run[0].shard.bytes(name, run[0].number, run[-1].number + 1)
        return found

    def _targets(self, name: str, places: Sequence[Place], take: Callable[..., Tensor]) -> Sequence[Tensor | None]:
        """A target of each image. Those of one shape share memory, which a loader uses again."""
        packed = [Packed.of(data) if data else None for data in self._bytes(name, places)]
        first = packed[0]
        if all(one and first and (one.shape, one.type) == (first.shape, first.type) for one in packed):
            found = take(name, (len(packed), *first.shape), first.type)
        else:
            found = [one and torch.empty(one.shape, dtype=one.type) for one in packed]
        for one, out in zip(packed, found, strict=True):
            if one is not None:
                one.unpack(out)
        return found

    def _fill(self, name: str, places: Sequence[Place], out: Tensor) -> None:
        """Rows of one shape, side by side; those that lie side by side in a file in one read."""
        done = 0
        for run in _runs(places, lambda a, b: a.shard is b.shard and a.size == b.size and a.first + a.rows == b.first):
            count = sum(place.rows for place in run)
            run[0].shard.read(run[0].size, name, run[0].first, out[done : done + count])
            done += count

    def _laid(self, name: str, places: Sequence[Place]) -> Tensor:
        """Maps of several shapes, each in the corner of the largest, 0 beside them."""
        shapes = [place.shard.shape(place.size, name) for place in places]
        largest = [max(shape[axis] for shape in shapes) for axis in (0, 1)]
        laid = torch.zeros(sum(place.rows for place in places), *largest, shapes[0][2], dtype=self.dtype)
        done = 0
        for place, shape in zip(places, shapes, strict=True):
            own = torch.empty(place.rows, *shape, dtype=self.dtype)
            place.shard.read(place.size, name, place.first, own)
            laid[done : done + place.rows, : shape[0], : shape[1]] = own
            done += place.rows
        return laid


def _runs(places: Sequence[Place], joined: Callable[[Place, Place], bool]) -> list[list[Place]]:
    """Consecutive places that belong together."""
    runs: list[list[Place]] = []
    for place in places:
        if runs and joined(runs[-1][-1], place):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
