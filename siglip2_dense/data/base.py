"""What all data sets share: checks at reading, transforms with a seed of their own, and a fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from siglip2_dense.contracts import IGNORE, Sample, Size
from siglip2_dense.data.reading import read_image, read_labels
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.registry import TRANSFORMS, build

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
MAPS = ("labels", "depth", "normals")  # the targets with a value for each pixel


def data_root(root: str | Path | None, folder: str) -> Path:
    """``root`` itself, else ``folder`` in $SIGLIP2_DENSE_DATA, else ``folder`` in ./data."""
    return Path(root) if root is not None else Path(os.environ.get("SIGLIP2_DENSE_DATA", "data")) / folder


def files_in(folder: Path, suffixes: set[str]) -> list[str]:
    """Sorted names of the files with these suffixes; hidden ones do not count."""
    return sorted(
        name for name in os.listdir(folder) if Path(name).suffix.lower() in suffixes and not name.startswith(".")
    )


class PixelDataset(Dataset):
    """Images with targets for each pixel.

    A subclass gives ``name``, ``classes``, ``splits`` and ``folder`` (its place below the data root), and

    - ``find() -> entries``, what ``root`` holds of ``split``; an entry is the names of its files below ``root``, the
      image first and the labels, if any, last;
    - ``read(entry) -> Sample``, untransformed, with IGNORE where a pixel does not count.

    ``transforms`` are callables ``t(sample, rng) -> Sample`` or their configs. An item is an index (then it is of epoch
    0) or a pair (epoch, index); what the transforms draw depends on (seed, epoch, index) and on nothing else.
    Raises UserError when the root is missing, the split unknown or empty, a target has another size than its image, or
    a label is no class.
    """

    name: str
    folder: str = ""
    classes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "val")
    first_label = 0  # how the files call class 0

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        self.split = split
        self.root = data_root(root, self.folder)
        self.transforms = [build(TRANSFORMS, t) if isinstance(t, dict) else t for t in transforms]
        self.seed = seed
        if self.splits and split not in self.splits:
            hint = nearest(split, self.splits, f"it has {', '.join(self.splits)}.")
            raise UserError(f"{self.name} has no split {split!r}: {hint}")
        self.entries = self.find()
        if not len(self.entries):
            raise UserError(
                f"{self.name} has no images of split {split!r}, looked in {self.root}; {self.remedy('verify')}"
            )

    @property
    def metainfo(self) -> dict:
        """What mmengine's loops hand to its visualizer."""
        return {"classes": self.classes}

    def find(self) -> Sequence:
        raise NotImplementedError

    def read(self, entry) -> Sample:
        raise NotImplementedError

    def remedy(self, action: str) -> str:
        """What to do about missing files, to end an error with; ``action`` is "prepare" or "verify"."""
        return f"run `python tools/data.py {action} {self.name} --root {self.root}`."

    def require(self, *names: str) -> None:
        """Raise UserError when the root, or one of these files or folders below it, is missing."""
        for path in (self.root, *(self.root / name for name in names)):
            if not path.exists():
                raise UserError(f"{self.name} is not there or not complete, looked in {path}; {self.remedy('prepare')}")

    def files(self, entry) -> list[Path]:
        """The files that an entry is read from, the image first."""
        return [self.root / name for name in entry]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        index = range(len(self))[index]
        entry = self.entries[index]
        sample = self.read(entry)
        self._check(sample, self.files(entry))
        sample = replace(sample, index=index, original_size=_size(sample.image), path=str(self.files(entry)[0]))
        rng = np.random.default_rng([self.seed, epoch, index])
        for transform in self.transforms:
            sample = transform(sample, rng)
        return _contiguous(sample)

    def _check(self, sample: Sample, files: list[Path]) -> None:
        for name in MAPS:
            target = getattr(sample, name)
            if target is not None and _size(target) != _size(sample.image):
                sizes = [f"{height}x{width}" for height, width in (_size(sample.image), _size(target))]
                raise UserError(
                    f"{files[0]} is {sizes[0]} pixels (height x width) but its {name}, {files[-1]}, are {sizes[1]}; "
                    "replace the file that is wrong."
                )
        if sample.labels is None:
            return
        low, high = (int(value) for value in torch.aminmax(sample.labels))
        count, first = len(self.classes), self.first_label
        if low < IGNORE or high >= count:
            raise UserError(
                f"{files[-1]}: holds the label {(high if high >= count else low) + first}, but {self.name} has {count} "
                f"classes, {first} to {count - 1 + first}; correct the file, the class list or the ignored labels."
            )

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of all files, in order; their content is not read."""
        listing = hashlib.sha256()
        for entry in self.entries:
            for path in self.files(entry):
                listing.update(f"{path.relative_to(self.root).as_posix()}\t{path.stat().st_size}\n".encode())
        return listing.hexdigest()


class LabelledImages(PixelDataset):
    """Pairs of an image file and a file with a class number for each pixel.

    In the files, the numbers ``ignore`` do not count, and ``first_label`` is class 0.
    """

    ignore: tuple[int, ...] = ()

    def pairs(self, images: str, labels: str, names: Sequence[str] | None = None) -> list[tuple[str, str]]:
        """(image, labels) below the root for the named images, or all, of one folder; labels are the other's STEM.png.

        Raises UserError when an image or its labels are missing.
        """
        self.require(images, labels)
        present = files_in(self.root / images, IMAGE_SUFFIXES)
        names = present if names is None else names
        present, labelled = set(present), set(files_in(self.root / labels, {".png"}))
        found = []
        for name in names:
            image, target = f"{images}/{name}", f"{labels}/{Path(name).stem}.png"
            if name not in present:
                raise UserError(f"{self.root / image} is listed but not there; {self.remedy('verify')}")
            if Path(target).name not in labelled:
                raise UserError(
                    f"{self.root / image} has no labels, looked for {self.root / target}; add them or remove the image."
                )
            found.append((image, target))
        return found

    def read(self, entry: tuple[str, str]) -> Sample:
        image, target = self.files(entry)
        values = read_labels(target)
        labels = values - self.first_label
        for number in self.ignore:
            labels[values == number] = IGNORE
        pixels = torch.from_numpy(read_image(image)).permute(2, 0, 1)
        return Sample(image=pixels, labels=torch.from_numpy(labels).long())


def _size(values: Tensor) -> Size:
    height, width = values.shape[-2:]
    return height, width


def _contiguous(sample: Sample) -> Sample:
    tensors = {f.name: value for f in fields(sample) if isinstance(value := getattr(sample, f.name), Tensor)}
    return replace(sample, **{name: tensor.contiguous() for name, tensor in tensors.items()})
