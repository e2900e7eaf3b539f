"""NYU Depth v2 (Silberman et al. 2012) in the three forms that probes are trained and scored on.

``NYUv2`` has raw depth in the lists of BTS (Lee et al. 2019), ``NYUv2Labelled`` the 1449 labelled frames with depth and
normals, ``NYUv2GeoNet`` the many frames with normals that GeoNet (Qi et al. 2018) was trained on.

Neither source of normals documents its axes, so each reader has a constant, ``signs``, that takes stored normals to the
package's (x right, y down, z into the scene, towards the camera). What is known of them: GeoNet's code counts a normal
only where its product with the pixel's ray is positive and compares its predictions with Ladický's as they are, and
DSINE says of the same data that a wall facing the camera is (0, 0, 1). So both are x right, y down, z into the scene,
away from the camera. ``siglip2-dense data verify`` compares stored normals with those that follow from the depth, axis
by axis: it is that check which makes a score on them trustworthy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import Sample
from siglip2_dense.data.base import PixelDataset, chosen_targets, files_in, image_tensor
from siglip2_dense.data.reading import read_depth
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.registry import DATASETS

SIZE = (480, 640)
# The toolbox's RGB camera. It counts pixels from 1, so that the centre of the first is at 1; here it is at 0.5.
CAMERA = ((518.857901, 0.0, 325.582449 - 0.5), (0.0, 519.469611, 253.736166 - 0.5), (0.0, 0.0, 1.0))
AWAY = (-1, -1, -1)  # of stored normals that point away from the camera

LABELLED, SPLITS, NORMALS = "nyu_depth_v2_labeled.mat", "splits.mat", "normals.npy"
DEPTHS = {"raw": "rawDepths", "filled": "depths"}  # how the labelled file calls them
LISTS = {  # split: folder of the images, list
    "train": ("sync", "nyudepthv2_train_files_with_gt.txt"),
    "test": ("official_splits/test", "nyudepthv2_test_files_with_gt.txt"),
}

GEONET_KEYS = ("img", "depth", "norm", "mask")
GEONET_FILES = 30_916
GEONET_BROKEN = (6919, 21181)  # of the sorted files; probe3d leaves them out
GEONET_MEAN = np.float32((122.175, 116.169, 103.508))  # RGB; taken off twice, as probe3d found
GEONET_MAX = 10.0  # metres; beyond is none (probe3d)


@DATASETS.register_module()
class NYUv2(PixelDataset):
    """Raw depth, in metres, of 24,231 frames to train on ("train") and 654 to score ("test").

    ``root`` holds BTS's folders ``sync`` and ``official_splits/test`` and its two lists; lines without depth do not
    count, and frames are in the order of their names. The test images have the black frame that BTS paints over their
    white one: they are what published scores are of.
    """

    name = "nyuv2"
    folder = "nyu_depth_v2"
    splits = ("train", "test")
    targets = ("depth",)

    def find(self) -> list[tuple[str, str]]:
        folder, listed = LISTS[self.split]
        self.require(folder, listed)
        present = cache(lambda path: set(os.listdir(path)) if path.is_dir() else set())
        entries = []
        for number, line in enumerate((self.root / listed).read_text().splitlines(), start=1):
            words = line.split()
            if not words or words[1:2] == ["None"]:
                continue
            if len(words) < 2:
                raise UserError(
                    f"{self.root / listed}, line {number}: {line!r} is not IMAGE DEPTH FOCAL; fetch the list again."
                )
            entry = tuple(f"{folder}/{word.lstrip('/')}" for word in words[:2])
            lacking = [path for path in self.files(entry) if path.name not in present(path.parent)]
            if lacking:
                self.missing(f"{lacking[0]} is in {listed}, line {number}, but not there", self.remedy("prepare"))
            else:
                entries.append(entry)
        return sorted(entries)

    def read(self, entry: tuple[str, str]) -> Sample:
        image, depth = self.files(entry)
        sample = Sample(image=image_tensor(image), depth=torch.from_numpy(read_depth(depth))[None])
        return _with_camera(sample, image)


@DATASETS.register_module()
class NYUv2Labelled(PixelDataset):
    """The 795 ("train") and 654 ("test") frames of nyu_depth_v2_labeled.mat, split by splits.mat.

    depth: "raw", with holes, or "filled" in. targets: "depth" or "normals" or both. Normals are those of Ladický et al.
    2014 as FAIR's self-supervision benchmark hands them out, in ``normals.npy`` as ``siglip2-dense data prepare``
    writes it; there are none where FAIR's mask or the raw depth says so. ``root`` holds the three files.
    """

    name = "nyuv2_labelled"
    folder = "nyu_depth_v2"
    splits = ("train", "test")
    signs = AWAY

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        depth: str = "raw",
        targets: Sequence[str] = ("depth",),
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        if depth not in DEPTHS:
            raise UserError(f"{self.name} has no depth {depth!r}: {nearest(str(depth), DEPTHS, 'give raw or filled.')}")
        self.depth = depth
        self.targets = chosen_targets(self.name, targets)
        self._opened = None
        super().__init__(split, root, transforms, seed)

    def find(self) -> list[int]:
        self.require(LABELLED, SPLITS, *([NORMALS] if "normals" in self.targets else []))
        key = f"{self.split}Ndxs"
        numbers = read_mat(self.root / SPLITS, (key,))[key].ravel()
        with open_labelled(self.root / LABELLED) as frames:
            count = len(frames["images"])
        wrong = [int(number) for number in numbers if not 1 <= number <= count]
        if wrong:
            raise UserError(
                f"{self.root / SPLITS}: lists frame {wrong[0]}, but {LABELLED} has 1 to {count}; one of the two is "
                "another file, fetch both again."
            )
        return sorted(int(number) - 1 for number in numbers)

    def files(self, entry: int) -> list[Path]:
        """A name for the frame, as a path inside the file; frames count from 1, as in splits.mat."""
        return [self.root / LABELLED / f"frame_{entry + 1:04d}"]

    def files_on_disk(self, index: int) -> list[Path]:
        return [self.root / name for name in ((LABELLED, NORMALS) if "normals" in self.targets else (LABELLED,))]

    def read(self, entry: int) -> Sample:
        frames, normals = self._sources()
        where = self.files(entry)[0]
        with _damage_is_named(self.root / LABELLED):
            # MATLAB stores column by column, so the axes come reversed
            image = np.ascontiguousarray(frames["images"][entry].transpose(2, 1, 0))
            depth = frames[DEPTHS[self.depth]][entry].T
            raw = depth if self.depth == "raw" or normals is None else frames[DEPTHS["raw"]][entry].T
        sample = Sample(image=torch.from_numpy(image).permute(2, 0, 1))
        if "depth" in self.targets:
            sample.depth = torch.from_numpy(np.ascontiguousarray(depth, np.float32))[None]
        if "normals" in self.targets:
            check_lengths(normals[entry], self.root / NORMALS)
            sample.normals = turned(normals[entry], raw > 0, self.signs)
        return _with_camera(sample, where)

    def fingerprint(self) -> str:
        """That of the files' names and sizes, the frames, and the kind of depth."""
        names = (LABELLED, NORMALS) if "normals" in self.targets else (LABELLED,)
        sizes = [(name, (self.root / name).stat().st_size) for name in names]
        return hashlib.sha256(f"{sizes} {self.entries} {self.depth}".encode()).hexdigest()

    def _sources(self):
        """The open file and the normals, (frames, 480, 640, 3), on the disk; HDF5 is opened by each process anew."""
        if self._opened is None or self._opened[0] != os.getpid():
            frames = open_labelled(self.root / LABELLED)
            normals = read_normals(self.root / NORMALS, len(frames["images"])) if "normals" in self.targets else None
            self._opened = os.getpid(), frames, normals
        return self._opened[1:]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": None}


@DATASETS.register_module()
class NYUv2GeoNet(PixelDataset):
    """GeoNet's training data: 30,914 frames with depth in metres, and normals estimated from it by Wang et al. 2015.

    "val" is every 20th frame, "train" the rest, "trainval" all, as in probe3d. ``root`` is one folder of .mat files.
    They are cut to 480 x 640. Depth beyond 10 m is none, and normals are none where there is no depth or the file's
    mask says so; probe3d does not look at that mask. targets: "depth" or "normals" or both.
    """

    name = "nyuv2_geonet"
    folder = "nyu_geonet"
    splits = ("trainval", "train", "val")
    signs = AWAY

    def __init__(
        self,
        split: str,
        root: str | Path | None = None,
        targets: Sequence[str] = ("depth", "normals"),
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        self.targets = chosen_targets(self.name, targets)
        super().__init__(split, root, transforms, seed)

    def find(self) -> list[tuple[str]]:
        self.require()
        names = files_in(self.root, {".mat"})
        if len(names) == GEONET_FILES:  # else somebody has removed them already
            names = [name for i, name in enumerate(names) if i not in GEONET_BROKEN]
        kept = {"trainval": lambda i: True, "train": lambda i: i % 20 != 0, "val": lambda i: i % 20 == 0}[self.split]
        return [(name,) for i, name in enumerate(names) if kept(i)]

    def read(self, entry: tuple[str]) -> Sample:
        (path,) = self.files(entry)
        height, width = SIZE
        frame = {key: values[:height, :width] for key, values in read_mat(path, GEONET_KEYS).items()}
        for key, values in frame.items():
            if values.shape[:2] != SIZE:
                raise UserError(f"{path}: its {key!r} is {values.shape}, not 480 x 640; fetch the file again.")
        image, depth, normals, mask = frame.values()
        image = (image + 2 * GEONET_MEAN).round().clip(0, 255).astype(np.uint8)
        depth = np.where(depth <= GEONET_MAX, depth, 0).astype(np.float32)
        sample = Sample(image=torch.from_numpy(image).permute(2, 0, 1))
        if "depth" in self.targets:
            sample.depth = torch.from_numpy(depth)[None]
        if "normals" in self.targets:
            check_lengths(normals, path)
            sample.normals = turned(normals, (depth > 0) & (mask > 0), self.signs)
        return _with_camera(sample, path)


def check_lengths(vectors: np.ndarray, where: Path) -> None:
    """Raise UserError when (H, W, 3) stored normals are no unit vectors: most of those that are not 0 are off by 10 %.

    A few may be: published normals have been smoothed and resized.
    """
    length = np.sqrt(np.square(vectors.astype(np.float32)).sum(-1))
    length = length[length > 0]
    if len(length) and not 0.9 < np.median(length) < 1.1:
        raise UserError(
            f"{where}: its normals have the length {np.median(length):.3g} instead of 1; it is another file, or they "
            "are encoded: fetch the right one."
        )


def turned(vectors: np.ndarray, valid: np.ndarray, signs: Sequence[int] = (1, 1, 1)) -> Tensor:
    """(H, W, 3) vectors of any length -> (3, H, W) float32 unit vectors, each axis times its sign.

    The zero vector where ``valid`` (H, W) is false or a vector is zero or not finite.
    """
    vectors = vectors.astype(np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = valid[..., None] & np.isfinite(length) & (length > 0)
    unit = np.where(known, vectors / np.where(known, length, 1), 0) * np.float32(signs)
    return torch.from_numpy(np.ascontiguousarray(unit.transpose(2, 0, 1), np.float32))


def read_mat(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """These arrays of a MATLAB file before version 7.3; raises UserError where it is none or lacks one."""
    from scipy.io import loadmat

    try:
        values = loadmat(path, variable_names=keys)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; fetch the data again.") from error
    except Exception as error:  # SciPy raises whatever the bytes lead it to
        raise UserError(f"{path}: damaged, or not a MATLAB file ({error}); fetch the file again.") from error
    if lacking := [key for key in keys if key not in values]:
        raise UserError(f"{path}: has no {lacking[0]!r}; it is another file, fetch the right one.")
    return {key: values[key] for key in keys}


def open_labelled(path: Path):
    """The HDF5 file of the labelled frames, for reading; raises UserError where it is another."""
    import h5py

    with _damage_is_named(path):
        frames = h5py.File(path, "r")
    if lacking := [key for key in ("images", "depths", "rawDepths") if key not in frames]:
        frames.close()
        raise UserError(f"{path}: has no {lacking[0]!r}; it is another file, fetch {LABELLED}.")
    return frames


def read_normals(path: Path, count: int) -> np.ndarray:
    """(count, 480, 640, 3) float32, left on the disk; raises UserError where the file holds something else."""
    shape = (count, *SIZE, 3)
    again = "remove it and run `siglip2-dense data prepare nyuv2_labelled`."
    try:
        normals = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); {again}") from error
    if normals.shape != shape or normals.dtype != np.float32:
        raise UserError(f"{path}: holds {normals.shape} {normals.dtype}, not {shape} float32; {again}")
    return normals


@contextmanager
def _damage_is_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: damaged, or not an HDF5 file ({error}); fetch the file again.") from error


def _with_camera(sample: Sample, where: Path) -> Sample:
    height, width = size = tuple(sample.image.shape[1:])
    if size != SIZE:
        raise UserError(f"{where} is {height}x{width} pixels, but NYUv2's frames, and its camera's, are 480x640.")
    sample.intrinsics = torch.tensor(CAMERA)
    return sample
