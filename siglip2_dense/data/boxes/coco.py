"""Images with boxes that have names: what all such sets share, and COCO."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from siglip2_dense.contracts import Sample, Size
from siglip2_dense.data.base import PixelDataset, image_tensor
from siglip2_dense.data.boxes.annotations import Annotations, read_coco
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS


class BoxDataset(PixelDataset):
    """Images with boxes in one file of annotations, and what is known not to be in them.

    A subclass gives ``load() -> Annotations`` and, as every set, ``name`` and ``folder``. A sample has the boxes that
    can be learnt from, each with its one name, and ``queries``. An entry is an image's place in the file.

    Attributes:
        annotations: the path of the file.
        known: what it says.
        classes, category_ids: the names in the order of the file's ids, and these ids.
        image_ids: (n,) the file's id of each sample's image.
        rule: how detections on it are scored, "coco" or "lvis"; none where they are not.
        coco_numbers: (n,) int64, the number that COCO knows each image by, or -1; the same numbers are the same images.

    Raises UserError when an image that is listed is not there, besides what ``PixelDataset`` and ``load`` do.
    """

    targets = ("boxes",)
    splits = ()  # whatever there are annotations of
    rule: str | None = None
    complete = True  # whether all things of all its classes are marked: what an image has no box of is not there
    unavailable: frozenset[str] = frozenset()  # files that the annotations list and nobody has

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        annotations: str = "",
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        self.place = annotations.format(split=split)  # below the root
        super().__init__(split, root, transforms, seed)

    def load(self) -> Annotations:
        raise NotImplementedError

    @property
    def annotations(self) -> Path:
        return self.root / self.place

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(self.known.category_ids.tolist())

    @property
    def image_ids(self) -> np.ndarray:
        return self.known.image_ids[self.entries]

    @property
    def coco_numbers(self) -> np.ndarray:
        return np.full(len(self), -1)

    @property
    def scoring(self) -> dict:
        """What a metric of detections on this set is built with."""
        if self.rule is None:
            raise UserError(f"{self.name} is a set to train on: no rule is agreed to score detections on it by.")
        return dict(
            annotations=self.annotations,
            rule=self.rule,
            category_ids=self.category_ids,
            image_ids=tuple(self.image_ids.tolist()),
        )

    def find(self) -> list[int]:
        self.require(self.place)
        self.known = self.load()
        self.classes = self.known.classes
        listings: dict[str, set[str]] = {}
        found = []
        for place, file in enumerate(self.known.files):
            folder, _, name = file.rpartition("/")
            if folder not in listings:
                listings[folder] = set(os.listdir(path)) if (path := self.root / folder).is_dir() else set()
            if name in listings[folder]:
                found.append(place)
            elif file not in self.unavailable:
                self.missing(f"{self.annotations} lists {self.root / file}, which is not there", self.remedy("verify"))
        return found

    def files(self, entry: int) -> list[Path]:
        return [self.root / self.known.files[entry]]

    def files_on_disk(self, index: int) -> list[Path]:
        return [*super().files_on_disk(index), self.annotations]

    def source(self, entry: int, target: str) -> Path:
        return self.annotations

    def size(self, entry: int) -> Size:
        """Height and width of an image as its annotations say."""
        height, width = self.known.sizes[entry].tolist()
        return height, width

    def read(self, entry: int) -> Sample:
        (path,), size = self.files(entry), self.size(entry)
        image = image_tensor(path)
        if image.shape[1:] != size and image.shape[:0:-1] == size:
            image = image_tensor(path, upright=False)  # the boxes were drawn without regard to its EXIF orientation
        if image.shape[1:] != size:
            raise UserError(
                f"{path} is {image.shape[1]}x{image.shape[2]} pixels (height x width) but {size[0]}x{size[1]} in "
                f"{self.annotations}, so its boxes are elsewhere; replace the file that is wrong."
            )
        own = self.known.of(entry)
        names = tuple((self.classes[label],) for label in self.known.labels[own].tolist())
        return Sample(image=image, boxes=torch.from_numpy(self.known.boxes[own].copy()), box_names=names)

    def view(self, index: int, rng: np.random.Generator) -> Sample:
        """As in ``PixelDataset``, with what can be asked: names of the boxes that transforms have left, then of what is
        known not to be in the image.
        """
        sample = super().view(index, rng)
        inside = self.labels_in(index)
        others = (label for label in range(len(self.classes)) if label not in inside)
        absent = others if self.complete else self.labels_absent(index)
        names = (*(name for names in sample.box_names for name in names), *(self.classes[label] for label in absent))
        return replace(sample, queries=tuple(dict.fromkeys(names)))

    def labels_in(self, index: int) -> set[int]:
        """Labels of what is in an image or may be, boxed or not: they are no negatives of it."""
        entry = self.entries[index]
        return set(self.known.labels[self.known.of(entry)].tolist()) | self.known.unsure.get(entry, frozenset())

    def labels_absent(self, index: int) -> list[int]:
        """Labels of what somebody looked for in an image and did not find; not those of sets that are complete."""
        inside = self.labels_in(index)
        return [label for label in self.known.absent.get(self.entries[index], ()) if label not in inside]

    def occurrences(self) -> Counter[str]:
        """How often each name is one of a box, or of what an image was looked through for."""
        counts = np.bincount(self.known.labels, minlength=len(self.classes))
        for labels in self.known.absent.values():
            counts[list(labels)] += 1
        found: Counter[str] = Counter()
        for name, count in zip(self.classes, counts.tolist(), strict=True):
            found[name] += count
        return found

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the images and of the annotations; their content is not read."""
        own = f"{self.place}\t{self.annotations.stat().st_size}\n"
        return hashlib.sha256(f"{super().fingerprint()}\n{own}".encode()).hexdigest()


@DATASETS.register_module()
class CocoDetection(BoxDataset):
    """COCO 2017's 80 kinds of things, splits "train" and "val": 118,287 and 5,000 images; or any set in its format.

    ROOT/annotations/instances_SPLIT2017.json and the images in ROOT/SPLIT2017. A box around a crowd is not learnt from;
    scoring knows it. All things of all 80 kinds are marked, unless there is a crowd of them.

    Args:
        annotations, images: the file and the folder of the images below the root, where "{split}" is filled in.
    """

    name = "coco"
    licence = "annotations CC BY 4.0; each photograph has the licence that its owner gave it on Flickr"
    folder = "coco"
    rule = "coco"

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        annotations: str = "annotations/instances_{split}2017.json",
        images: str = "{split}2017",
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        self.images = images.format(split=split)
        super().__init__(split, root, annotations, transforms, seed)

    def load(self) -> Annotations:
        return read_coco(self.annotations, lambda image: f"{self.images}/{image['file_name']}")

    @property
    def coco_numbers(self) -> np.ndarray:
        """COCO's files are called by twelve digits, before 2017 behind the split. A set with any other names is not
        COCO's, and may have an image of COCO's under one of these.
        """
        stems = (Path(self.known.files[entry]).stem for entry in self.entries)
        found = [re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", stem) for stem in stems]
        return np.array([int(match[1]) for match in found], dtype=np.int64) if all(found) else super().coco_numbers
