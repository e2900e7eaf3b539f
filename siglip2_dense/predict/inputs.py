"""Images as users have them, on disk or in memory, as RGB pixels of 8 bits; and the files that some paths stand for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from siglip2_dense.data.reading import opened
from siglip2_dense.errors import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}

ImageLike = str | Path | Image.Image | np.ndarray


def pixels_of(image: ImageLike) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, of Pillow's image, or of an array.

    Files and Pillow's images are turned upright by their EXIF orientation; grey, palettes and CMYK become RGB, alpha is
    dropped, and 16 bits a channel become 8: 65535 is white. Arrays are (H, W) or (H, W, 1) grey, (H, W, 3) RGB or
    (H, W, 4) RGBA, uint8 or uint16. Raises UserError for anything else.
    """
    if isinstance(image, (str, Path)):
        with opened(image) as file:
            return _of_pillow(file, str(image))
    if isinstance(image, Image.Image):
        return _of_pillow(image, "the image")
    if isinstance(image, np.ndarray):
        return _of_array(image, "the image")
    raise UserError(
        f"an image is given as a path, a NumPy array or Pillow's image, not as {type(image).__name__}; of a tensor "
        "(3, H, W) give tensor.permute(1, 2, 0).cpu().numpy()."
    )


def _of_pillow(image: Image.Image, name: str) -> np.ndarray:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits, which Pillow's versions call I;16 or I
        values = np.array(upright)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: holds numbers from {values.min()} to {values.max()}; save it with 8 or 16 bits.")
        return _of_array(values.astype(np.uint16), name)
    if upright.mode == "F":
        raise UserError(f"{name}: holds floating-point numbers, whose range says nothing; save it with 8 or 16 bits.")
    return np.array(upright.convert("RGB"))


def _of_array(image: np.ndarray, name: str) -> np.ndarray:
    shape = image.shape
    if image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise UserError(
            f"{name}: an array of shape {shape}; give (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, without a batch."
        )
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise UserError(
            f"{name}: an array of {image.dtype}, whose range is not known; give uint8 (0 to 255) or uint16 (0 to "
            "65535)."
        )
    if image.ndim == 2 or shape[2] == 1:
        return np.repeat(image.reshape(*shape[:2], 1), 3, axis=2)
    return np.require(image[:, :, :3], requirements=["C", "W"])  # torch warns of what cannot be written to


@dataclass(frozen=True)
class Source:
    """A file to predict, and where its predictions go: a path without suffix, relative to their folder."""

    path: Path
    place: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def sources(paths: Sequence[str | Path], out: str | Path) -> list[Source]:
    """The images and videos that paths of files and folders stand for; a folder's in all its folders, in order.

    What is hidden, and what lies in ``out``, is left out. A photograph and a video of one name keep their suffixes.
    Raises UserError where there is none, where two would be written over one another, and for a folder without images.
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"{out} is a file, and predictions go into a folder; give another --out.")
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(Source(path, Path(path.stem)))
            continue
        if path.resolve() == Path(out).resolve():
            raise UserError(f"{path}: predictions would lie among the images; give another folder, --out.")
        inside = [Source(file, file.relative_to(path).with_suffix("")) for file in _walk(path, Path(out).resolve())]
        if not inside:
            raise UserError(f"{path}: holds no image and no video ({', '.join(sorted(IMAGES | VIDEOS))}).")
        found += inside
    if not any(source.path.is_file() for source in found):
        raise UserError(f"none of the images is there: {', '.join(map(str, paths))}; check the paths.")
    alike = Counter(source.place for source in found)
    found = [one if alike[one.place] == 1 else replace(one, place=one.place.with_name(one.path.name)) for one in found]
    place, times = Counter(source.place for source in found).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{times} of the images are called {str(place)!r}; predict them into folders of their own, with --out."
        )
    return found


def _walk(folder: Path, out: Path) -> list[Path]:
    found = []
    for where, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name[0] != "." and (Path(where) / name).resolve() != out)
        found += [
            Path(where) / name
            for name in sorted(files)
            if name[0] != "." and Path(name).suffix.lower() in IMAGES | VIDEOS
        ]
    return sorted(found)
