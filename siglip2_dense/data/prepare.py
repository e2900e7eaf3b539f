"""The published data sets: fetched, laid out as the package reads them, and verified."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from siglip2_dense.contracts import IGNORE, Size
from siglip2_dense.data.ade20k import ADE20K
from siglip2_dense.data.base import IMAGE_SUFFIXES, LabelledImages, PixelDataset, data_root, files_in
from siglip2_dense.data.download import fetch, open_tar, unpack
from siglip2_dense.data.folder import ImageFolder
from siglip2_dense.data.generated import GeneratedScenes
from siglip2_dense.data.pascal import PascalVOC
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.files import atomic, write_text
from siglip2_dense.label_sets import PALETTES

SETS: dict[str, type[PixelDataset]] = {
    "ade20k": ADE20K,
    "pascal": PascalVOC,
    "folder": ImageFolder,
    "generated": GeneratedScenes,
}
SAMPLE = 200  # images of a split that are read in full unless all are
SHOWN = 5  # problems of a split
WORKERS = min(8, os.cpu_count() or 1)
LISTS = "ImageSets/Segmentation"
LAYOUT = (
    "DIR/images/SPLIT/NAME.jpg (or .png), DIR/labels/SPLIT/NAME.png (one channel, the number of a class for each "
    "pixel) and DIR/classes.txt (the classes' names, one a line, in the order of their numbers)"
)


@dataclass(frozen=True)
class Archive:
    """A file to fetch and what to do with it."""

    url: str
    size: int  # bytes, about; for the check of free space
    md5: str
    use: Callable[[Path, Path], None]  # of the archive and the root
    makes: str  # below the root; there only when the archive has been used


@dataclass(frozen=True)
class Recipe:
    archives: tuple[Archive, ...]
    counts: dict[str, int]  # images of each split


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
    own = {name for split in ("train", "val") for name in (root / LISTS / f"{split}.txt").read_text().split()}
    write_text(root / LISTS / "aug.txt", "".join(f"{name}\n" for name in sorted(listed - own)))


def _write_mask(path: Path, content: bytes) -> None:
    from scipy.io import loadmat

    mask = Image.fromarray(loadmat(io.BytesIO(content))["GTcls"][0, 0]["Segmentation"].astype(np.uint8))
    mask.putpalette([value for colour in PALETTES["pascal"] for value in colour])
    with atomic(path) as temporary:
        mask.save(temporary, format="PNG")


# Checksums of the archives: those of public loaders; VOC's and SBD's are torchvision's.
RECIPES = {
    "ade20k": Recipe(
        archives=(
            Archive(
                url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                size=970_000_000,
                md5="7328b3957e407ddae1d3cbf487f149ef",
                use=partial(unpack, inside="ADEChallengeData2016"),
                makes="annotations",
            ),
        ),
        counts={"train": 20_210, "val": 2_000},
    ),
    "pascal": Recipe(
        archives=(
            Archive(
                url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                size=1_999_639_040,
                md5="6cd6e144f989b92b3379bac3b3de84fd",
                use=partial(unpack, inside="VOCdevkit/VOC2012"),
                makes="JPEGImages",
            ),
            Archive(
                url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                size=1_419_539_633,
                md5="82b4d87ceb2ed10f6038a1cba92111cb",
                use=add_sbd,
                makes=f"{LISTS}/aug.txt",
            ),
        ),
        counts={"train": 1_464 + 9_118, "val": 1_449},
    ),
}


def prepare(name: str, root: str | Path | None = None) -> bool:
    """Fetch and lay out what is missing of a data set, then verify it; returns whether all is well.

    It can be interrupted and called again. Archives stay in the folder "downloads" beside the root.
    """
    _require_known(name)
    if name == "generated":
        print("generated: the scenes are made as they are read; there is nothing to prepare.")
        return True
    if name == "folder":
        raise UserError(
            f"a folder of your own is not downloaded: lay it out as {LAYOUT}, then run "
            "`python tools/data.py verify folder --root DIR`."
        )
    root = data_root(root, SETS[name].folder)
    downloads = root.parent / "downloads"
    for archive in RECIPES[name].archives:
        if not (root / archive.makes).exists():
            path = downloads / archive.url.rpartition("/")[2]
            archive.use(fetch(archive.url, path, archive.size, archive.md5), root)
    whole = verify(name, root)
    if whole and downloads.is_dir():
        print(f"The archives in {downloads} are no longer needed.")
    return whole


@dataclass
class Split:
    """What was found of one split."""

    expected: int | None = None  # images
    images: int = 0
    read: int = 0  # images that were read in full and are well
    pixels: np.ndarray | int = 0  # of their labels: not counted, class 0, class 1, …
    classes: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)


def verify(name: str, root: str | Path | None = None, ignore: Sequence[int] = (255,), all_labels: bool = False) -> bool:
    """Print what is wrong with a data set, a table of its splits and, for "folder", its classes' shares of the pixels.

    Every image must have labels of its size, as far as the files' headers say; SAMPLE images of each split, evenly
    spread, or all, are read in full. ignore: for "folder", the numbers in its label files that do not count.
    Returns whether all is well.
    """
    _require_known(name)
    if name == "generated":
        print("generated: the scenes are made as they are read; there is nothing to verify.")
        return True
    root = folder_root(root) if name == "folder" else data_root(root, SETS[name].folder)
    if name == "folder":
        advice = "add the file, or remove its partner."
        settings, counts = {"root": root, "ignore": ignore}, dict.fromkeys(_folders(root / "images"))
    else:
        advice = f"move {root} away and run `python tools/data.py prepare {name} --root {root}`."
        settings, counts = {"root": root}, RECIPES[name].counts
    splits = {
        split: _inspect(SETS[name], {"split": split, **settings}, expected, advice, all_labels)
        for split, expected in counts.items()
    }
    _print_problems(splits)
    print(f"{name} in {root}")
    _print_table([["split", "images", "expected", "read in full", "problems"], *map(_row, splits, splits.values())])
    if name == "folder":
        _print_shares({split: found for split, found in splits.items() if found.read})
    return not any(found.problems for found in splits.values())


def folder_root(root: str | Path | None) -> Path:
    """The root of a user's own set; raises UserError where there is none."""
    if root is None or not _folders(Path(root) / "images"):
        what = "give --root DIR" if root is None else f"{root} has no folder images/SPLIT"
        raise UserError(f"folder: {what}; the layout is {LAYOUT}.")
    return Path(root)


def _folders(path: Path) -> list[str]:
    return sorted(inner.name for inner in path.iterdir() if inner.is_dir()) if path.is_dir() else []


def _require_known(name: str) -> None:
    if name not in SETS:
        known = f"the known ones are {', '.join(SETS)}."
        raise UserError(f"data set {name!r} is unknown: {nearest(name, SETS, known)}")


def _inspect(cls: type[LabelledImages], settings: dict, expected: int | None, advice: str, all_labels: bool) -> Split:
    found = Split(expected)
    try:
        dataset = _lenient(cls, found.problems, advice)(**settings)
    except UserError as error:
        found.images = len(found.problems)
        found.problems.append(str(error))
        return found
    found.classes = dataset.classes
    found.images = count = len(dataset) + len(found.problems)  # a problem so far is an image without labels
    if expected is not None and count != expected:
        found.problems.append(f"{settings['split']}: {count:,} images instead of {expected:,}; {advice}")

    every = range(len(dataset))
    wrong = dict(_each(partial(_compare_sizes, dataset), every, f"{settings['split']}: sizes"))
    chosen = every if all_labels else sorted({i * len(every) // SAMPLE for i in range(SAMPLE)})
    readable = [index for index in chosen if wrong[index] is None]
    for index, result in _each(partial(_read, dataset), readable, f"{settings['split']}: reading"):
        if isinstance(result, str):
            wrong[index] = result
        else:
            found.read += 1
            found.pixels = found.pixels + result
    found.problems += [wrong[index] for index in every if wrong[index]]
    return found


def _lenient(cls: type[LabelledImages], problems: list[str], advice: str) -> type[LabelledImages]:
    """``cls``, except that it goes on after an image or labels that are missing and adds the fact to ``problems``."""

    class Lenient(cls):
        def pairs(self, images: str, labels: str, names: Sequence[str] | None = None) -> list[tuple[str, str]]:
            self.require(images, labels)
            listing = files_in(self.root / images, IMAGE_SUFFIXES)
            present, labelled = set(listing), set(files_in(self.root / labels, {".png"}))
            found = []
            for name in listing if names is None else names:
                image, target = f"{images}/{name}", f"{labels}/{Path(name).stem}.png"
                if name not in present:
                    problems.append(f"{self.root / image}: listed but not there; {advice}")
                elif Path(target).name not in labelled:
                    problems.append(f"{self.root / image}: has no labels, looked for {self.root / target}; {advice}")
                else:
                    found.append((image, target))
            return found

        def remedy(self, action: str) -> str:
            return super().remedy("prepare")  # not "verify", which is under way

    return Lenient


def _each(function: Callable, indices: Sequence[int], title: str) -> Iterator[tuple[int, object]]:
    """(index, function(index)) by several threads, with a progress bar where somebody may watch."""
    with ThreadPoolExecutor(WORKERS) as pool:
        results = tqdm(pool.map(function, indices), total=len(indices), desc=title, leave=False, disable=None)
        yield from zip(indices, results, strict=True)


def _compare_sizes(dataset: LabelledImages, index: int) -> str | None:
    image, labels = dataset.files(dataset.entries[index])
    try:
        sizes = _stored_size(image, upright=True), _stored_size(labels)
    except UserError as error:
        return str(error)
    if sizes[0] == sizes[1]:
        return None
    (height, width), (other_height, other_width) = sizes
    return (
        f"{image} is {height}x{width} pixels (height x width) but its labels, {labels}, are {other_height}x"
        f"{other_width}; replace the file that is wrong."
    )


def _stored_size(path: Path, upright: bool = False) -> Size:
    """Of the header alone; ``upright``: as the image is after it is turned by its EXIF orientation."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = upright and image.getexif().get(0x0112, 1) > 4
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}); replace the file.") from error
    return (width, height) if turned else (height, width)


def _read(dataset: LabelledImages, index: int) -> np.ndarray | str:
    """Pixels not counted and of each class, or what is wrong."""
    try:
        labels = dataset[index].labels.numpy()
    except UserError as error:
        return str(error)
    return np.bincount(labels.ravel() - IGNORE, minlength=len(dataset.classes) + 1)


def _print_problems(splits: dict[str, Split]) -> None:
    told = set()
    for split, found in splits.items():
        for problem in found.problems[:SHOWN]:
            if problem not in told:  # a root that is missing is missing for every split
                print(f"problem: {problem}")
            told.add(problem)
        if len(found.problems) > SHOWN:
            print(f"problem: … and {len(found.problems) - SHOWN:,} more of {split}.")


def _row(split: str, found: Split) -> list[str]:
    expected = "-" if found.expected is None else f"{found.expected:,}"
    return [split, f"{found.images:,}", expected, f"{found.read:,}", f"{len(found.problems):,}"]


def _print_shares(splits: dict[str, Split]) -> None:
    """Per class its per cent of the pixels that were read, those that do not count included."""
    if not splits:
        return
    names = ["not counted", *next(iter(splits.values())).classes]
    shares = [100 * found.pixels / found.pixels.sum() for found in splits.values()]
    rows = [[name, *(f"{share[i]:.2f}" for share in shares)] for i, name in enumerate(names)]
    _print_table([["% of pixels read", *splits], *rows[1:], rows[0]])


def _print_table(rows: Iterable[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  ".join(cells))
    print()
