"""PASCAL VOC 2012 segmentation (Everingham et al.) with the extra masks of SBD (Hariharan et al. 2011)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from siglip2_dense.data.base import LabelledImages
from siglip2_dense.label_sets import CLASSES
from siglip2_dense.registry import DATASETS

LISTS = {
    "train": [("train", "SegmentationClass"), ("aug", "SegmentationClassAug")],  # 1,464 + 9,118 = 10,582 images
    "train_voc": [("train", "SegmentationClass")],
    "val": [("val", "SegmentationClass")],  # 1,449
}


@DATASETS.register_module()
class PascalVOC(LabelledImages):
    """21 classes, background counted; 255 (the borders of objects) does not count.

    "train" is VOC's own train.txt with VOC's own masks, then SBD's aug.txt with SBD's: what DINOv2 trains on. The list
    trainaug.txt would replace VOC's masks by SBD's. "train_voc" is the first part alone, which VisBench trains on.
    ``root`` is the folder VOCdevkit/VOC2012.

    background: False is VOC20 of open-vocabulary work: the background does not count either, and the objects 1 to 20
    of the files are the classes 0 to 19. The set is then called "voc20", as its labels are.
    """

    name = "pascal"
    licence = "photographs under the terms of Flickr; of the annotations none is stated"
    folder = "VOCdevkit/VOC2012"
    classes = CLASSES["pascal"]
    splits = tuple(LISTS)
    ignore = (255,)

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
        background: bool = True,
    ):
        if not background:
            self.name, self.classes = "voc20", CLASSES["voc20"]
            self.first_label, self.ignore = 1, (0, 255)
        super().__init__(split, root, transforms, seed)

    def find(self) -> list[tuple[str, str]]:
        entries = []
        for listed, masks in LISTS[self.split]:
            path = f"ImageSets/Segmentation/{listed}.txt"
            self.require(path)
            names = sorted((self.root / path).read_text().split())  # aug.txt comes in no order
            entries += self.pairs("JPEGImages", masks, [f"{name}.jpg" for name in names])
        return entries
