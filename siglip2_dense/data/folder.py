"""Any folder of images and label files: a user's own set, CamVid, Cityscapes after flattening."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from siglip2_dense.data.base import LabelledImages, ignored
from siglip2_dense.label_sets import classes_of
from siglip2_dense.registry import DATASETS


@DATASETS.register_module()
class ImageFolder(LabelledImages):
    """ROOT/images/SPLIT/NAME.jpg (or .png, …) with ROOT/labels/SPLIT/NAME.png and ROOT/classes.txt.

    classes: a list of names, a file of them or a known set, instead of ROOT/classes.txt; ignore: the number or numbers
    in the label files that do not count, by default 255, or 65535 where 255 is a class; images, labels: the two folders
    below the root, where "{split}" is filled in.
    """

    splits = ()  # whatever folders there are

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: str | Path | Sequence[str] | None = None,
        ignore: int | Sequence[int] | None = None,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
        images: str = "images/{split}",
        labels: str = "labels/{split}",
    ):
        self.name = Path(root).resolve().name
        self.root = Path(root)
        self.images = images.format(split=split)
        self.labels = labels.format(split=split)
        if classes is None:
            self.require("classes.txt")
            classes = self.root / "classes.txt"
        self.classes = classes_of(classes)
        self.ignore = ignored(ignore, len(self.classes))
        super().__init__(split, root, transforms, seed)

    def remedy(self, action: str) -> str:
        return (
            f"put the images in {self.images}, PNG labels of the same names in {self.labels}, the names in classes.txt."
        )

    def find(self) -> list[tuple[str, str]]:
        return self.pairs(self.images, self.labels)
