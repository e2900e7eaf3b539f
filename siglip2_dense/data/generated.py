"""The generated scenes as a data set: nothing to download, and every target is exact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from siglip2_dense.contracts import Sample, Size
from siglip2_dense.data.base import MAPS, PixelDataset
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import CLASSES
from siglip2_dense.registry import DATASETS

FIRST_SCENE = {"train": 0, "val": 1_000_000}


@DATASETS.register_module()
class GeneratedScenes(PixelDataset):
    """``length`` rooms of ``size`` (height, width) pixels, the same ones whatever the ``seed`` of the transforms."""

    name = "generated"
    classes = CLASSES["generated"]
    targets = MAPS

    def __init__(
        self,
        split: str,
        length: int,
        size: Size = (192, 256),
        seed: int = 0,
        transforms: Sequence[dict | Callable] = (),
    ):
        self.length = length
        self.size = tuple(size)
        if length < 1:
            raise UserError(f"GeneratedScenes needs a length of 1 or more, got {length}.")
        super().__init__(split, None, transforms, seed)
        self.root = None

    def find(self) -> range:
        first = FIRST_SCENE[self.split]
        return range(first, first + self.length)

    def read(self, entry: int) -> Sample:
        from siglip2_dense.data.scenes import render

        return render(entry, self.size)

    def files(self, entry: int) -> list[Path]:
        return [Path(f"scene-{entry:06d}")]

    def files_on_disk(self, index: int) -> list[Path]:
        return []

    def fingerprint(self) -> str:
        arguments = f"{self.name} {self.split} {self.length} {self.size}"
        return hashlib.sha256(arguments.encode()).hexdigest()
