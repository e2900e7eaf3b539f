"""Objects365 (Shao et al. 2019): 365 kinds of everyday things, all marked in every image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from siglip2_dense.data.boxes.annotations import Annotations, read_coco
from siglip2_dense.data.boxes.coco import BoxDataset
from siglip2_dense.registry import DATASETS


@DATASETS.register_module()
class Objects365(BoxDataset):
    """Version 2, splits "train" and "val", 1,742,289 and 80,000 images, as it comes:
    ROOT/annotations/zhiyuan_objv2_SPLIT.json, and its archives unpacked in ROOT/SPLIT, so that there is
    ROOT/train/patch0/objects365_v1_00000000.jpg.
    """

    name = "objects365"
    folder = "objects365"
    file = "annotations/zhiyuan_objv2_{split}.json"
    parts = 2  # of the paths in the annotations that say where an image is: patchN/FILE
    unavailable = frozenset({  # listed, and in none of the archives, as mmdetection knows
        "train/patch16/objects365_v2_00908726.jpg",
        "train/patch6/objects365_v1_00320532.jpg",
        "train/patch6/objects365_v1_00320534.jpg",
    })  # fmt: skip

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        super().__init__(split, root, self.file, transforms, seed)

    def load(self) -> Annotations:
        return read_coco(
            self.annotations, lambda image: "/".join([self.split, *image["file_name"].split("/")[-self.parts :]])
        )


@DATASETS.register_module()
class Objects365V1(Objects365):
    """Version 1, splits "train" and "val", 608,606 and 30,000 images: ROOT/annotations/objects365_SPLIT.json and
    ROOT/SPLIT/obj365_SPLIT_000000000001.jpg.
    """

    name = "objects365_v1"
    folder = "objects365_v1"
    file = "annotations/objects365_{split}.json"
    parts = 1
    unavailable = frozenset()
