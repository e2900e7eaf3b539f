"""The generated scenes as a data set: nothing to download, and every target is exact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from siglip2_dense.contracts import Sample, Size
from siglip2_dense.data.base import MAPS, PixelDataset
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.label_sets import CLASSES, classes_of
from siglip2_dense.registry import DATASETS

FIRST_SCENE = {"train": 0, "val": 1_000_000}


@DATASETS.register_module()
class GeneratedScenes(PixelDataset):
    """``length`` rooms of ``size`` (height, width) pixels, the same ones whatever the ``seed`` of the transforms.

    classes: others than the six kinds of things, such as "red box", see ``scenes.render``; what is of none of them does
    not count.
    """

    name = "generated"
    licence = "computed by this package: free"
    classes = CLASSES["generated"]
    targets = MAPS

    def __init__(
        self,
        split: str,
        length: int,
        size: Size = (192, 256),
        seed: int = 0,
        transforms: Sequence[dict | Callable] = (),
        classes: Sequence[str] | None = None,
    ):
        if classes is not None:
            self.classes = classes_of(classes)
            _check_names(self.classes)
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

        if self.classes == CLASSES["generated"]:
            return render(entry, self.size)
        return render(entry, self.size, names=self.classes)

    def files(self, entry: int) -> list[Path]:
        return [Path(f"scene-{entry:06d}")]

    def files_on_disk(self, index: int) -> list[Path]:
        return []

    def fingerprint(self) -> str:
        arguments = f"{self.name} {self.split} {self.length} {self.size}"
        if self.classes != CLASSES["generated"]:
            arguments += f" {self.classes}"
        return hashlib.sha256(arguments.encode()).hexdigest()


@DATASETS.register_module()
class GeneratedBoxes(GeneratedScenes):
    """The same scenes with boxes around their solids, which are called by colour and kind, "red box"."""

    name = "generated_boxes"
    targets = ("boxes",)

    def __init__(
        self,
        split: str,
        length: int,
        size: Size = (192, 256),
        seed: int = 0,
        transforms: Sequence[dict | Callable] = (),
    ):
        super().__init__(split, length, size, seed, transforms, classes=_solids())

    def read(self, entry: int) -> Sample:
        scene = super().read(entry)
        return Sample(image=scene.image, boxes=scene.boxes, box_names=scene.box_names)

    @cached_property
    def scoring(self) -> dict:
        """What a metric of detections on them is built with: each scene is rendered, once."""
        boxes = []
        for number, entry in enumerate(self.entries):
            sample = self.read(entry)
            for (x0, y0, x1, y1), (name,) in zip(sample.boxes.tolist(), sample.box_names, strict=True):
                boxes.append({
                    "image_id": number, "category_id": self.classes.index(name), "bbox": [x0, y0, x1 - x0, y1 - y0],
                })  # fmt: skip
        numbers, ids = tuple(range(len(self))), tuple(range(len(self.classes)))
        content = {
            "images": [{"id": number} for number in numbers],
            "categories": [{"id": label, "name": self.classes[label]} for label in ids],
            "annotations": boxes,
        }
        return dict(annotations=content, rule="coco", category_ids=ids, image_ids=numbers)


def _solids() -> tuple[str, ...]:
    from siglip2_dense.data.scenes import CLASSES as KINDS
    from siglip2_dense.data.scenes import COLOURS

    return tuple(f"{colour} {kind}" for colour in COLOURS for kind in KINDS[3:])


def _check_names(names: Sequence[str]) -> None:
    """Raise UserError for a class that no scene has."""
    from siglip2_dense.data.scenes import CLASSES as KINDS

    known = [*KINDS, *_solids()]
    for name in names:
        if name not in known:
            hint = nearest(name, known, ", ".join(known))
            raise UserError(f"GeneratedScenes has nothing that is called {name!r}: {hint}")
