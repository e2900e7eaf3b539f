"""Any folder of images and 16-bit depth: a user's own captures, 7-Scenes, KITTI after flattening."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from siglip2_dense.contracts import Sample
from siglip2_dense.data.base import MAPS, LabelledImages, chosen_targets, ignored, image_tensor
from siglip2_dense.data.geometry import check_intrinsics, fitted_normals, read_intrinsics
from siglip2_dense.data.reading import read_depth
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import classes_of
from siglip2_dense.registry import DATASETS


@DATASETS.register_module()
class RGBDFolder(LabelledImages):
    """ROOT/images/SPLIT/NAME.jpg (or .png, …) with ROOT/depth/SPLIT/NAME.png, 16 bits; a target or several.

    targets: out of "depth", "normals" and "labels". Metres are the stored number divided by ``scale``; besides 0, the
    numbers ``invalid`` mean no depth. Normals are fitted to the depth in a ``window`` (``fitted_normals``), for which
    the camera is needed: ROOT/intrinsics.txt, or the file ``intrinsics``, for images of this size. Labels are as in
    ImageFolder: ROOT/labels/SPLIT/NAME.png with ``classes`` or ROOT/classes.txt, where the numbers ``ignore`` do not
    count. images, depth, labels: the folders below the root, where "{split}" is filled in.
    """

    splits = ()  # whatever folders there are

    def __init__(
        self,
        root: str | Path,
        split: str,
        targets: Sequence[str] = ("depth",),
        scale: float = 1000.0,
        invalid: int | Sequence[int] = (),
        intrinsics: str | Path | None = None,
        window: int = 7,
        classes: str | Path | Sequence[str] | None = None,
        ignore: int | Sequence[int] | None = None,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
        images: str = "images/{split}",
        depth: str = "depth/{split}",
        labels: str = "labels/{split}",
    ):
        self.name = Path(root).resolve().name
        self.root = Path(root)
        self.images, self.depth, self.labels = (path.format(split=split) for path in (images, depth, labels))
        self.targets = chosen_targets(self.name, targets, MAPS)
        self.scale, self.invalid, self.window = scale, _numbers(invalid), window
        numbers = isinstance(scale, (int, float)) and isinstance(window, int)
        if not numbers or not scale > 0 or window < 3 or window % 2 == 0:
            raise UserError(
                f"{self.name}: scale={scale!r}, window={window!r}; give a number above 0 and an odd one above 1."
            )
        if "labels" in self.targets:
            if classes is None:
                self.require("classes.txt")
                classes = self.root / "classes.txt"
            self.classes = classes_of(classes)
            self.ignore = ignored(ignore, len(self.classes))
        self.camera_file = self.root / "intrinsics.txt" if intrinsics is None else Path(intrinsics)
        wanted = intrinsics is not None or "normals" in self.targets
        self.camera = read_intrinsics(self.camera_file) if wanted or self.camera_file.exists() else None
        super().__init__(split, root, transforms, seed)

    def remedy(self, action: str) -> str:
        labels = f", labels in {self.labels}, the names in classes.txt" if "labels" in self.targets else ""
        return f"put the images in {self.images}, 16-bit PNG depth of the same names in {self.depth}{labels}."

    def find(self) -> list[tuple[str, ...]]:
        labels = {"labels": self.labels} if "labels" in self.targets else {}
        return self.matches(self.images, {"depth": self.depth, **labels})

    def source(self, entry: tuple[str, ...], target: str) -> Path:
        return self.root / entry[2 if target == "labels" else 1]

    def read(self, entry: tuple[str, ...]) -> Sample:
        image = image_tensor(self.files(entry)[0])
        depth = torch.from_numpy(read_depth(self.source(entry, "depth"), self.scale, self.invalid))[None]
        sample = Sample(image=image, intrinsics=self.camera)
        if self.camera is not None:
            check_intrinsics(self.camera, self.camera_file, image.shape[1:])
        if "depth" in self.targets:
            sample.depth = depth
        if "normals" in self.targets:
            sample.normals = fitted_normals(depth, self.camera, self.window)
        if "labels" in self.targets:
            sample.labels = self.read_classes(self.source(entry, "labels"))
        return sample

    def fingerprint(self) -> str:
        """That of the files' names and sizes, and of all that decides what is made of them."""
        camera = None if self.camera is None else self.camera.tolist()
        reading = (super().fingerprint(), camera, self.scale, self.invalid, self.window, self.ignore)
        return hashlib.sha256(str(reading).encode()).hexdigest()


def _numbers(given: int | Sequence[int]) -> tuple[int, ...]:
    return (given,) if isinstance(given, int) else tuple(given)
