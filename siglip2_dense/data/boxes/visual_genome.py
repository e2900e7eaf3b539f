"""Visual Genome (Krishna et al. 2017): things in everyday images, called by whatever came to people's minds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from siglip2_dense.data.boxes.annotations import Annotations, arranged, format_is_named, read_json
from siglip2_dense.data.boxes.coco import BoxDataset
from siglip2_dense.label_sets import canonical
from siglip2_dense.registry import DATASETS

IMAGES = "image_data.json"


@DATASETS.register_module()
class VisualGenome(BoxDataset):
    """All 108,077 images as the split "train": ROOT/objects.json and ROOT/image_data.json with the images in
    ROOT/VG_100K and ROOT/VG_100K_2.

    Names are free text, written by ``canonical``; an object with several has the first, one without any is left out.
    What an image does not hold is not known. About half of the images are COCO's: ``coco_numbers``.
    """

    name = "visual_genome"
    licence = "CC BY 4.0"
    folder = "visual_genome"
    splits = ("train",)
    complete = False

    def __init__(
        self,
        split: str = "train",
        root: str | Path | None = None,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        super().__init__(split, root, "objects.json", transforms, seed)

    def find(self) -> list[int]:
        self.require(IMAGES)
        return super().find()

    def load(self) -> Annotations:
        path = self.root / IMAGES
        with format_is_named(path):
            images = sorted(read_json(path), key=lambda image: image["image_id"])
            image_ids = np.array([image["image_id"] for image in images], dtype=np.int64)
            files = ["/".join(image["url"].split("/")[-2:]) for image in images]
            sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)
            numbers = [image.get("coco_id") for image in images]
            self._numbers = np.array([-1 if number is None else number for number in numbers], dtype=np.int64)
        content = read_json(self.annotations)
        with format_is_named(self.annotations):
            place_of = {number: place for place, number in enumerate(image_ids.tolist())}
            rows = [
                (place_of[image["image_id"]], name, (thing["x"], thing["y"], thing["w"], thing["h"]))
                for image in content
                for thing in image["objects"]
                if (name := next(filter(None, map(canonical, thing["names"])), ""))
            ]
        classes = tuple(sorted({name for _, name, _ in rows}))
        label_of = {name: label for label, name in enumerate(classes)}
        return arranged(
            classes,
            np.arange(len(classes)),
            image_ids,
            files,
            sizes,
            np.array([place for place, _, _ in rows], dtype=np.int64),
            np.array([label_of[name] for _, name, _ in rows], dtype=np.int64),
            np.array([box for _, _, box in rows], dtype=np.float64).reshape(-1, 4),
        )

    @property
    def coco_numbers(self) -> np.ndarray:
        return self._numbers[self.entries]
