"""COCO-Stuff 164k (Caesar et al. 2018): every pixel of COCO 2017, things and stuff."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import IGNORE
from siglip2_dense.data.base import LabelledImages
from siglip2_dense.data.reading import read_labels
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import CLASSES
from siglip2_dense.registry import DATASETS

LAST, NONE = 181, 255  # the greatest id in the files, and what they hold where nothing is labelled
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # ids of categories that COCO named and never annotated
USED = [number for number in range(LAST + 1) if number not in UNUSED]
CLASS_OF = np.full(NONE + 1, IGNORE)
CLASS_OF[USED] = np.arange(len(USED))


@DATASETS.register_module()
class COCOStuff(LabelledImages):
    """Splits "train" and "val" of {train,val}2017 with stuffthingmaps/{train,val}2017: 118,287 and 5,000 images.

    The label files are those of stuffthingmaps_trainval2017.zip as they come. They hold COCO's id of a category less
    one, 0 to 181, or 255 where nothing is labelled, which does not count. 171 of the ids are used, 80 things and 91
    kinds of stuff; a class is the rank of its id among them, as in mmsegmentation, whose converted copies of the files
    (``*_labelTrainIds.png``) are not needed. ``root`` is the folder coco.

    Protocols: CAT-Seg trains on all 171 classes of "train", short side 384 and crops of 384 pixels (the SigLIP 2 paper
    says 172 classes, which counts the unlabelled one); training-free work scores "val" with short sides of 336 to 448,
    at the images' own sizes.
    """

    name = "coco_stuff"
    licence = "annotations CC BY 4.0; each photograph has the licence that its owner gave it on Flickr"
    folder = "coco"
    classes = CLASSES["coco_stuff"]

    def find(self) -> list[tuple[str, str]]:
        return self.pairs(f"{self.split}2017", f"stuffthingmaps/{self.split}2017")

    def read_classes(self, path: Path) -> Tensor:
        values = read_labels(path)
        wrong = values[(values > LAST) & (values != NONE)]
        if wrong.size:
            raise UserError(
                f"{path}: holds the label {wrong[0]}, but COCO-Stuff's are 0 to {LAST}, and {NONE} for none; fetch the "
                "file again."
            )
        return torch.from_numpy(CLASS_OF[values])
