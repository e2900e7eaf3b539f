"""What all data sets share: checks at reading, transforms with a seed of their own, and a fingerprint."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from siglip2_dense.contracts import IGNORE, Sample, Size
from siglip2_dense.data.geometry import check_intrinsics
from siglip2_dense.data.reading import read_image, read_labels
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.label_sets import classes_of, read_classes
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


def chosen_targets(name: str, targets: str | Sequence[str], known: Sequence[str] = ("depth", "normals")) -> tuple:
    """The targets that were asked for; raises UserError for none, or one that the set ``name`` does not have."""
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    for target in targets:
        if target not in known:
            raise UserError(f"{name} has no target {target!r}: {nearest(target, known, ', '.join(known))}")
    if not targets:
        raise UserError(f"{name}: targets is empty; name one or more of {', '.join(known)}.")
    return targets


class PixelDataset(Dataset):
    """Images with targets for each pixel.

    A subclass gives ``name``, ``classes``, ``splits``, ``folder`` (its place below the data root) and ``targets`` (what
    its samples have out of "labels", "depth" and "normals"), and

    - ``find() -> entries``, what ``root`` holds of ``split``; an entry is the names of its files below ``root``, the
      image first and the labels, if any, last;
    - ``read(entry) -> Sample``, untransformed, with IGNORE, 0 or the zero vector where a pixel does not count;
    - ``source(entry, target)`` where the targets come from several files.

    ``transforms`` are callables ``t(sample, rng) -> Sample`` or their configs. An item is an index (then it is of epoch
    0) or a pair (epoch, index); what the transforms draw depends on (seed, epoch, index) and on nothing else.
    Raises UserError when the root is missing, the split unknown or empty, a target has another size than its image, a
    label is no class, a depth or a normal none, or an image without any depth.
    """

    name: str
    folder: str = ""
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "val")
    first_label = 0  # how the files call class 0
    suffix = ".png"  # of the files of targets
    licence = "unknown"  # what its publishers state, in words; it is theirs to say, and may have changed

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
        known = type(self).name  # to the command line; a variant may go by another name
        return f"run `siglip2-dense data {action} {known} --root {self.root}`."

    def require(self, *names: str) -> None:
        """Raise UserError when the root, or one of these files or folders below it, is missing."""
        for path in (self.root, *(self.root / name for name in names)):
            if not path.exists():
                raise UserError(f"{self.name} is not there or not complete, looked in {path}; {self.remedy('prepare')}")

    def missing(self, problem: str, remedy: str) -> None:
        """Told of each file that a split lacks; raises UserError. To verify a set is to collect them instead."""
        raise UserError(f"{problem}; {remedy}")

    def matches(
        self, images: str, targets: dict[str, str], names: Sequence[str] | None = None
    ) -> list[tuple[str, ...]]:
        """(image, its file of each target) below the root for the named images, or all, of the folder ``images``.

        targets: {what it is: folder}; there, an image's file is its stem with the set's suffix. An image that is not
        there or lacks a file goes to ``missing`` and is left out.
        """
        self.require(images, *targets.values())
        listing = files_in(self.root / images, IMAGE_SUFFIXES)
        present = set(listing)
        partners = {folder: set(files_in(self.root / folder, {self.suffix})) for folder in targets.values()}
        found = []
        for name in listing if names is None else names:
            image, partner = f"{images}/{name}", f"{Path(name).stem}{self.suffix}"
            lacking = [target for target, folder in targets.items() if partner not in partners[folder]]
            if name not in present:
                self.missing(f"{self.root / image} is listed but not there", self.remedy("verify"))
            elif lacking:
                where = self.root / targets[lacking[0]] / partner
                problem = f"{self.root / image} has no {lacking[0]}, looked for {where}"
                self.missing(problem, "add the file or remove the image.")
            else:
                found.append((image, *(f"{folder}/{partner}" for folder in targets.values())))
        return found

    def files(self, entry) -> list[Path]:
        """The files that an entry is read from, the image first."""
        return [self.root / name for name in entry]

    def files_on_disk(self, index: int) -> list[Path]:
        """Whatever the content of an image and its targets depends on."""
        return self.files(self.entries[index])

    def source(self, entry, target: str) -> Path:
        """The one of an entry's files that an error of this target is about."""
        return self.files(entry)[-1]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        index = range(len(self))[index]
        return contiguous(self.view(index, np.random.default_rng([self.seed, epoch, index])))

    def view(self, index: int, rng: np.random.Generator) -> Sample:
        """The image in this place, 0 or more, with what its transforms draw from ``rng``; in memory as they left it."""
        entry = self.entries[index]
        sample = self.read(entry)
        self._check(sample, entry)
        sample = replace(sample, index=index, original_size=_size(sample.image), path=str(self.files(entry)[0]))
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample

    def _check(self, sample: Sample, entry) -> None:
        image = self.files(entry)[0]
        found = {name: self.source(entry, name) for name in MAPS if getattr(sample, name) is not None}
        for name, where in found.items():
            sizes = _size(sample.image), _size(getattr(sample, name))
            if sizes[0] != sizes[1]:
                sizes = [f"{height}x{width}" for height, width in sizes]
                raise UserError(
                    f"{image} is {sizes[0]} pixels (height x width) but its {name}, {where}, are {sizes[1]}; "
                    "replace the file that is wrong."
                )
        for name, check in (("labels", self._check_labels), ("depth", _check_depth), ("normals", _check_normals)):
            if name in found:
                check(getattr(sample, name), found[name])
        if sample.intrinsics is not None:
            check_intrinsics(sample.intrinsics, f"{image}: its camera")

    def _check_labels(self, labels: Tensor, where: Path) -> None:
        low, high = (int(value) for value in torch.aminmax(labels))
        count, first = len(self.classes), self.first_label
        if low < IGNORE or high >= count:
            raise UserError(
                f"{where}: holds the label {(high if high >= count else low) + first}, but {self.name} has {count} "
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

    targets = ("labels",)
    ignore: tuple[int, ...] = ()

    def pairs(self, images: str, labels: str, names: Sequence[str] | None = None) -> list[tuple[str, ...]]:
        """(image, labels) as in ``matches``."""
        return self.matches(images, {"labels": labels}, names)

    def read(self, entry: tuple[str, ...]) -> Sample:
        image, labels = self.files(entry)
        return Sample(image=image_tensor(image), labels=self.read_classes(labels))

    def read_classes(self, path: Path) -> Tensor:
        """(H, W) int64 classes from 0, or IGNORE, of a label file."""
        values = read_labels(path)
        labels = values - self.first_label
        for number in self.ignore:
            labels[values == number] = IGNORE
        return torch.from_numpy(labels).long()


class NamedImages(LabelledImages):
    """A set of hundreds of classes, whose names are in a file below its root.

    classes: a list of names or a file of them, instead of that file, in the order of the labels.
    """

    names: str  # the file
    count: int  # of the classes

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
        classes: str | Path | Sequence[str] | None = None,
    ):
        self.given = classes
        super().__init__(split, root, transforms, seed)

    def named(self) -> tuple[str, ...]:
        """The classes. Raises UserError where the file is missing, or the given names are not as many."""
        if self.given is None:
            self.require(self.names)
            return self.read_names(self.root / self.names)
        names = classes_of(self.given)
        if len(names) != self.count:
            raise UserError(f"classes: {len(names)} names for the {self.count} classes of {self.name}; name each once.")
        return names

    def read_names(self, path: Path) -> tuple[str, ...]:
        """Those that the set's own file holds."""
        return read_classes(path)


def ignored(given: int | Sequence[int] | None, num_classes: int) -> tuple[int, ...]:
    """The numbers in a user's label files that do not count: the given ones, or what files of their width hold."""
    if given is None:
        return (255 if num_classes <= 255 else 65535,)
    return (given,) if isinstance(given, int) else tuple(given)


def image_tensor(path: Path, upright: bool = True) -> Tensor:
    """(3, H, W) uint8 RGB of a file, in memory as an (H, W, 3) array, as the transforms want it; see ``read_image``."""
    return torch.from_numpy(read_image(path, upright)).permute(2, 0, 1)


def _check_depth(depth: Tensor, where: Path) -> None:
    low, high = (float(value) for value in torch.aminmax(depth))  # both NaN if one is
    if not 0 <= low <= high < math.inf:
        raise UserError(
            f"{where}: holds depth from {low:g} to {high:g}, but depth is finite and above 0, or 0 for none; correct "
            "the file."
        )
    if high == 0:
        raise UserError(f"{where}: has no depth at any pixel; remove it and its image, or correct what is invalid.")


def _check_normals(normals: Tensor, where: Path) -> None:
    length = normals.square().sum(0).sqrt()  # torch's own norm is a hundred times slower along the first axis
    wrong = ~((length - 1).abs() <= 1e-2) & (length != 0)
    if wrong.any():
        raise UserError(
            f"{where}: holds a normal of length {length[wrong][0]:.3g}, but they have length 1, or 0 where there is "
            "none; correct the file."
        )
    if not length.any():
        raise UserError(f"{where}: gives no normal at any pixel; remove it and its image, or correct it.")


def _size(values: Tensor) -> Size:
    height, width = values.shape[-2:]
    return height, width


def contiguous(sample: Sample) -> Sample:
    """With all tensors in the order of their axes, as a batch wants them."""
    tensors = {f.name: value for f in fields(sample) if isinstance(value := getattr(sample, f.name), Tensor)}
    return replace(sample, **{name: tensor.contiguous() for name, tensor in tensors.items()})
