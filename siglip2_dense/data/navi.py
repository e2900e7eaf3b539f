"""NAVI (Jampani et al. 2023): single objects with depth rendered from their scans, as probe3d (El Banani et al. 2024)
cuts them out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from siglip2_dense.contracts import Sample, Size
from siglip2_dense.data.base import PixelDataset, chosen_targets
from siglip2_dense.data.geometry import neighbour_normals
from siglip2_dense.data.reading import read_depth, read_image
from siglip2_dense.data.transforms import fitted
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS
from siglip2_dense.resample import resize_features, resize_labels

SHORT = 512  # pixels of the short side, and of the square in its middle
INVERSE = 65535 * 10 / 1000  # metres times the stored number (NAVI, data_util.py)
NEAR, THIN = 0.01, 0.01  # relative depth begins at the one; objects thinner than the other, in metres, do not fill it
MULTIVIEW = ("multiview_", "multiview-")  # of versions 1.0 and 1.5
WILD = "wild_set"
CAMERAS = "annotations.json"
DEPTHS, NORMALS = ("relative", "metric"), ("corner", "true")


@DATASETS.register_module()
class NAVI(PixelDataset):
    """Square crops around one object each: all multi-view scenes to train on, all wild images to score.

    Of the sorted list of a split every ``every``-th image is kept, and only objects with both kinds of scenes count.
    Each image is brought to a short side of 512 pixels, cut to the square in its middle and then to the smallest square
    around the object. A sample's size is that of the last cut; the resize to a common size is a transform.

    depth: "metric", in metres, or "relative", 0.01 + 0.99 (d - near) / max(1 cm, far - near), where near is the image's
    least depth and far the crop's greatest. normals: between neighbours in the crop (``neighbour_normals``), from
    metres in either case; "true" with the camera's axis in the middle of the whole image, as NAVI has it, "corner" with
    it in the crop's top left corner, as in probe3d, which tilts normals by 6 to 13 degrees. targets: "depth" or
    "normals" or both.

    ``root`` holds OBJECT/SCENE/{annotations.json,images,depth} of version 1.0 or 1.5, at any resolution.

    Where probe3d does otherwise by mistake: its crop loses the object's last row and column, and falls off the object
    near the image's edge; its list is in the file system's order; its images are taken from the nearest pixel. It also
    sets depth below the image's least to 0 after resizing, of which there is none where depth is never blended.
    """

    name = "navi"
    folder = "navi"
    splits = ("train", "test")

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        targets: Sequence[str] = ("depth", "normals"),
        depth: str = "relative",
        normals: str = "corner",
        every: int = 4,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        normals = "true" if normals is True else normals  # what a command line makes of the word
        for setting, value, known in (("depth", depth, DEPTHS), ("normals", normals, NORMALS)):
            if value not in known:
                raise UserError(f"NAVI: {setting}={value!r}: give {' or '.join(known)}.")
        if every < 1:
            raise UserError(f"NAVI: every={every}; give 1 for all images, or more.")
        self.targets = chosen_targets("NAVI", targets)
        self.depth, self.normals, self.every = depth, normals, every
        self.unit = "m" if depth == "metric" else ""
        super().__init__(split, root, transforms, seed)

    def find(self) -> list[tuple[str, str]]:
        self.require()
        scenes = {path.name: _scenes(path) for path in sorted(self.root.iterdir()) if path.is_dir()}
        self.objects = tuple(name for name, (views, wild) in scenes.items() if views and wild)
        self.cameras: dict[str, tuple[float, Size]] = {}  # image: focal length, size of the image that it is for
        entries = []
        for name in self.objects:
            views, wild = scenes[name]
            for scene in views if self.split == "train" else wild:
                entries += self._images(f"{name}/{scene}")
        return entries[:: self.every]

    def _images(self, scene: str) -> list[tuple[str, str]]:
        self.require(f"{scene}/{CAMERAS}")
        path = self.root / scene / CAMERAS
        try:
            cameras = {
                item["filename"]: (float(item["camera"]["focal_length"]), tuple(item["image_size"]))
                for item in json.loads(path.read_text())
            }
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not NAVI's list of images with their cameras ({error!r}); fetch it again."
            ) from error
        self.cameras |= {f"{scene}/images/{name}": camera for name, camera in cameras.items()}
        return self.matches(f"{scene}/images", {"depth": f"{scene}/depth"}, sorted(cameras))

    def files_on_disk(self, index: int) -> list[Path]:
        files = super().files_on_disk(index)
        return [*files, files[0].parents[1] / CAMERAS]

    def read(self, entry: tuple[str, str]) -> Sample:
        image_path, depth_path = self.files(entry)
        image, stored = read_image(image_path), read_depth(depth_path, scale=1.0)
        if image.shape[:2] != stored.shape:
            sizes = ["x".join(map(str, array.shape[:2])) for array in (image, stored)]
            raise UserError(
                f"{image_path} is {sizes[0]} pixels (height x width) but its depth, {depth_path}, is {sizes[1]}; "
                "replace the file that is wrong."
            )
        near = INVERSE / max(stored.max(), 1)
        size = fitted(stored.shape, SHORT, None)
        top, left = ((side - SHORT) // 2 for side in size)
        middle = (slice(top, top + SHORT), slice(left, left + SHORT))
        stored = resize_labels(stored, size)[middle]
        if not stored.any():
            raise UserError(f"{depth_path}: has no depth in the square in its middle; fetch it again.")
        rows, columns = square_around(stored > 0)
        depth = torch.from_numpy(_metres(stored[rows, columns]))[None]

        focal, annotated = self.cameras[entry[0]]
        focal *= SHORT / min(annotated)
        intrinsics = torch.eye(3)
        intrinsics[0, 0] = intrinsics[1, 1] = focal
        intrinsics[:2, 2] = torch.tensor([size[1] / 2 - left - columns.start, size[0] / 2 - top - rows.start])
        sample = Sample(image=shrink(image, size)[:, *middle][:, rows, columns], intrinsics=intrinsics)
        if "normals" in self.targets:
            camera = intrinsics.clone()
            camera[:2, 2] *= self.normals == "true"
            sample.normals = neighbour_normals(depth, camera)
        if "depth" in self.targets:
            sample.depth = depth if self.depth == "metric" else relative(depth, near)
        return sample

    def fingerprint(self) -> str:
        """That of the files' names and sizes, and of the kinds of depth and normals."""
        return hashlib.sha256(f"{super().fingerprint()} {self.depth} {self.normals}".encode()).hexdigest()


def _scenes(path: Path) -> tuple[list[str], list[str]]:
    """Names of an object's multi-view scenes and of its wild ones, sorted; videos do not count."""
    names = sorted(inner.name for inner in path.iterdir() if inner.is_dir())
    return [name for name in names if name.startswith(MULTIVIEW)], [name for name in names if name == WILD]


def _metres(stored: np.ndarray) -> np.ndarray:
    """Stored inverse depth -> float32 metres, 0 where it is 0."""
    return np.where(stored > 0, INVERSE / np.maximum(stored, 1), 0).astype(np.float32)


def shrink(image: np.ndarray, size: Size) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, *size) uint8, in memory as (*size, 3). Pixels are averaged: the photographs are six times
    as large as needed, and a bilinear kernel would look at one pixel in nine of them.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = resize_features(pixels, size)[0].round().to(torch.uint8)
    return small.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def square_around(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest square around what is true in a square mask: in the middle, but inside."""
    spans = [np.flatnonzero(mask.any(axis))[[0, -1]] + (0, 1) for axis in (1, 0)]
    side = max(stop - start for start, stop in spans)
    starts = [min(max(start - (side - (stop - start)) // 2, 0), len(mask) - side) for start, stop in spans]
    return tuple(slice(int(start), int(start + side)) for start in starts)


def relative(depth: torch.Tensor, near: float) -> torch.Tensor:
    """Metres -> 0.01 at ``near`` to 1 at the greatest depth, or less if that is within 1 cm; 0 stays 0."""
    spread = max(depth.max().item() - near, THIN)
    return torch.where(depth > 0, NEAR + (1 - NEAR) * (depth - near) / spread, 0)
