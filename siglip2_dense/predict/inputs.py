"""The files of images and videos that paths stand for, and where their predictions go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from siglip2_dense.errors import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


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
