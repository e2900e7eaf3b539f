"""LVIS (Gupta et al. 2019): 1,203 kinds of things in COCO's images, each image checked for some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from siglip2_dense.data.boxes.annotations import Annotations, read_coco
from siglip2_dense.data.boxes.coco import BoxDataset
from siglip2_dense.registry import DATASETS


@DATASETS.register_module()
class LVIS(BoxDataset):
    """Splits "train" and "val" of v1, 100,170 and 19,809 images, as ROOT/annotations/lvis_v1_SPLIT.json. ``root`` is
    the folder coco, with train2017 and val2017: images of LVIS's val are in both.

    An image is checked for its own names and a few others: ``labels_absent`` are those it lacks. A category that is not
    marked completely in an image is left out of it, boxes and all, as OWL-ViT's paper does (section 4.6); its published
    code keeps the boxes, and by its table 3 they change no score.

    Args:
        annotations: the file below the root; v0.5 is "annotations/lvis_v0.5_{split}.json".
    """

    name = "lvis"
    licence = "annotations CC BY 4.0; each photograph has the licence that its owner gave it on Flickr"
    folder = "coco"
    rule = "lvis"
    complete = False

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        annotations: str = "annotations/lvis_v1_{split}.json",
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        super().__init__(split, root, annotations, transforms, seed)

    def load(self) -> Annotations:
        return read_coco(self.annotations, lambda image: "/".join(image["coco_url"].split("/")[-2:]))

    @property
    def coco_numbers(self) -> np.ndarray:
        return self.image_ids.astype(np.int64)
