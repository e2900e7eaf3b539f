"""ADE20K scene parsing (Zhou et al. 2017): 150 classes, 20,210 images to train on and 2,000 to validate."""

from __future__ import annotations

from siglip2_dense.data.base import LabelledImages
from siglip2_dense.label_sets import CLASSES
from siglip2_dense.registry import DATASETS


@DATASETS.register_module()
class ADE20K(LabelledImages):
    """Splits "train" and "val" of ADEChallengeData2016/{images,annotations}/{training,validation}.

    In the files 0 is "other", which does not count, and class k is k + 1. ``root`` is the folder ADEChallengeData2016.
    """

    name = "ade20k"
    licence = "images for non-commercial research and education; annotations BSD-3-Clause"
    folder = "ADEChallengeData2016"
    classes = CLASSES["ade20k"]
    first_label = 1
    ignore = (0,)

    def find(self) -> list[tuple[str, str]]:
        split = {"train": "training", "val": "validation"}[self.split]
        return self.pairs(f"images/{split}", f"annotations/{split}")
