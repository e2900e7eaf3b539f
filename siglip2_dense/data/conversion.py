"""What an archive holds, as the files that the readers want; all can be interrupted and called again."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from siglip2_dense.contracts import Size
from siglip2_dense.data.download import open_tar
from siglip2_dense.data.navi import MULTIVIEW, WILD, shrink
from siglip2_dense.data.nyuv2 import LABELLED, LISTS, NORMALS, SIZE, SPLITS, open_labelled, read_mat, turned
from siglip2_dense.data.reading import WORKERS
from siglip2_dense.data.transforms import fitted
from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic, write_text
from siglip2_dense.label_sets import PALETTES
from siglip2_dense.resample import resize_labels

VOC_LISTS = "ImageSets/Segmentation"
NAVI_SHORT, NAVI_NOTE = 1024, "README.txt"
ARRAYS = {  # all that a pickle of NumPy arrays asks for
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def place(archive: Path, root: Path) -> None:
    """The file itself goes to the root."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.move(archive, root / archive.name)


def add_sbd(archive: Path, root: Path) -> None:
    """SBD's masks as PNGs in SegmentationClassAug and, when all are there, the list aug.txt of those VOC lacks.

    aug.txt holds the names of SBD's train and val that are in neither of VOC's; a mask is GTcls.Segmentation of
    dataset/cls/NAME.mat.
    """
    listed = set()
    with open_tar(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            mask = root / "SegmentationClassAug" / f"{path.stem}.png"
            if path.parent.name == "dataset" and path.name in ("train.txt", "val.txt"):
                listed |= set(tar.extractfile(member).read().decode().split())
            elif path.parent.name == "cls" and path.suffix == ".mat" and not mask.exists():
                _write_mask(mask, tar.extractfile(member).read())
    if not listed:
        raise UserError(f"{archive} has no lists dataset/train.txt and val.txt; it is another archive, fetch SBD's.")
    own = {name for split in ("train", "val") for name in (root / VOC_LISTS / f"{split}.txt").read_text().split()}
    write_text(root / VOC_LISTS / "aug.txt", "".join(f"{name}\n" for name in sorted(listed - own)))


def _write_mask(path: Path, content: bytes) -> None:
    from scipy.io import loadmat

    mask = Image.fromarray(loadmat(io.BytesIO(content))["GTcls"][0, 0]["Segmentation"].astype(np.uint8))
    mask.putpalette([value for colour in PALETTES["pascal"] for value in colour])
    with atomic(path) as temporary:
        mask.save(temporary, format="PNG")


def write_official_test(root: Path) -> None:
    """NYUv2's test frames out of its labelled file, as BTS writes them: raw depth in whole millimetres, cut off, and
    JPEGs that are black where the white frame was.

    Source: BTS, ``utils/extract_official_train_test_set_from_mat.py``.
    """
    import cv2

    folder = root / LISTS["test"][0]
    temporary = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(temporary, ignore_errors=True)  # of an attempt that was killed
    numbers = read_mat(root / SPLITS, ("testNdxs",))["testNdxs"].ravel()
    with open_labelled(root / LABELLED) as frames:
        for number in tqdm(numbers, desc="writing the test frames", disable=None):
            i = int(number) - 1  # BTS counts from 0, splits.mat from 1
            scene = temporary / _scene_type(root / LABELLED, frames, i)
            scene.mkdir(parents=True, exist_ok=True)
            inside = np.s_[7:474, 7:632]
            image = np.zeros((*SIZE, 3), np.uint8)
            image[inside] = frames["images"][i].transpose(2, 1, 0)[inside]
            jpeg = cv2.imencode(".jpg", image[..., ::-1])[1]
            (scene / f"rgb_{i:05d}.jpg").write_bytes(jpeg.tobytes())
            depth = (frames["rawDepths"][i].T * 1000).astype(np.uint16)
            Image.fromarray(depth).save(scene / f"sync_depth_{i:05d}.png")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _scene_type(path: Path, frames, i: int) -> str:
    try:
        name = "".join(map(chr, frames[frames["sceneTypes"][0][i]][()].ravel()))
    except (KeyError, IndexError, ValueError, OSError) as error:
        raise UserError(f"{path}: has no scene type of frame {i + 1} ({error}); fetch the file again.") from error
    if not re.fullmatch(r"\w+", name):  # it becomes the name of a folder
        raise UserError(f"{path}: frame {i + 1} is of a scene type {name!r}; fetch the file again.")
    return name


def write_normals(archive: Path, root: Path) -> None:
    """The normals of FAIR's zip archive, a compressed pickle, as normals.npy: (frames, 480, 640, 3) float32.

    In the order of the frames, in the source's axes, of length 1, and 0 where FAIR's mask says that there is no depth.
    Nothing in the pickle is run: it may ask for arrays alone. Takes 8 GB of memory, once; the result is read from the
    disk, frame by frame.
    """
    content = _arrays(archive)
    normals, masks = content["all_normals"], content["all_valid_depth_masks"]
    order = np.argsort(_frame_numbers(archive, content["all_filenames"], len(normals)))
    with atomic(root / NORMALS) as temporary, open(temporary, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": normals.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for i in tqdm(order, desc=f"writing {NORMALS}", disable=None):
            frame = turned(normals[i], masks[i] > 0).permute(1, 2, 0).contiguous().numpy()
            file.write(frame.astype("<f4").tobytes())


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module.replace("numpy._core", "numpy.core"), name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _arrays(archive: Path) -> dict:
    try:
        with zipfile.ZipFile(archive) as opened:
            (name,) = (name for name in opened.namelist() if PurePosixPath(name).name == "all_normals.pklz")
            print(f"reading {name}: minutes, and 8 GB of memory")
            with opened.open(name) as member, gzip.open(member) as stream:
                content = _ArraysOnly(stream).load()
        shape = content["all_normals"].shape
        if shape[1:] != (*SIZE, 3) or content["all_valid_depth_masks"].shape != shape[:3]:
            raise ValueError(f"normals of shape {shape}")
    except MemoryError as error:
        raise UserError(f"{archive}: reading it takes 8 GB of memory; free some, or use a larger machine.") from error
    except Exception as error:  # whatever a damaged or hostile pickle raises
        raise UserError(
            f"{archive}: damaged, or not FAIR's archive of NYUv2's normals, so not read ({error}); remove it and run "
            "the command again."
        ) from error
    return content


def _frame_numbers(archive: Path, names: list, count: int) -> list[int]:
    try:
        numbers = [int(name) for name in names]
    except (TypeError, ValueError):
        numbers = []
    if sorted(numbers) != list(range(1, count + 1)):
        raise UserError(f"{archive}: its frames are not numbered 1 to {count}; remove it and fetch it again.")
    return numbers


def add_navi(archive: Path, root: Path) -> None:
    """NAVI's multi-view and wild scenes with images and depth of a short side of 1024 pixels, instead of up to 3,000.

    Reading photographs of 12 million pixels takes longer than all that is done with them. Images are averaged and saved
    as JPEGs of quality 95, depth is the nearest pixel's; probe3d shrinks both alike, images bilinearly and to quality
    75. Videos, masks and scans are left out.
    """
    with open_tar(archive) as tar, ThreadPoolExecutor(WORKERS) as pool:
        members = _navi_members(tar, root)
        while batch := list(islice(members, 4 * WORKERS)):
            for _ in pool.map(_write_small, *zip(*batch, strict=True)):
                pass
    if not any(root.glob(f"*/{WILD}/annotations.json")):
        raise UserError(f"{archive} has no OBJECT/{WILD}/annotations.json; it is another archive, fetch NAVI's.")
    write_text(root / NAVI_NOTE, f"{archive.name} with images and depth of a short side of {NAVI_SHORT} pixels.\n")


def _navi_members(tar, root: Path) -> Iterator[tuple[Path, bytes]]:
    """(path, content) of the files that the reader wants and that are not there yet."""
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if not parts:  # the archive's own folder
            continue
        inside = parts[-4:] if parts[-1].lower().endswith((".jpg", ".png")) else parts[-3:]
        if not member.isfile() or len(inside) < 3 or ".." in inside or not inside[1].startswith((*MULTIVIEW, WILD)):
            continue
        path = root.joinpath(*inside)
        if inside[2] in ("images", "depth", "annotations.json") and not path.exists():
            yield path, tar.extractfile(member).read()


def _write_small(path: Path, content: bytes) -> None:
    if path.name == "annotations.json":
        write_text(path, content.decode())
        return
    is_colour = path.parent.name == "images"
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB") if is_colour else image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"the archive holds a damaged picture for {path} ({error}); remove it and fetch it again."
        ) from error
    if is_colour:
        pixels = shrink(pixels, _small(pixels.shape[:2])).permute(1, 2, 0).numpy()
        settings = dict(format="JPEG", quality=95)
    else:
        pixels = resize_labels(pixels, _small(pixels.shape)).astype(np.uint16)
        settings = dict(format="PNG")
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, **settings)


def _small(size: Size) -> Size:
    return fitted(size, min(NAVI_SHORT, *size), None)
