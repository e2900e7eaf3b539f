"""What a data set on the disk has and lacks: files, sizes, the values of its targets, and where normals point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from siglip2_dense.contracts import IGNORE, Sample
from siglip2_dense.data.base import IMAGE_SUFFIXES, PixelDataset
from siglip2_dense.data.boxes.annotations import Annotations
from siglip2_dense.data.boxes.coco import BoxDataset
from siglip2_dense.data.geometry import fitted_normals
from siglip2_dense.data.reading import DEPTH_MODES, WORKERS
from siglip2_dense.data.recipes import OWN, RECIPES, SETS, Recipe, find_root, folders, own_targets, require_known
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build

SAMPLE = 200  # images of a split that are read in full unless all are
COMPARED = 16  # images of a split whose normals are compared with those of the depth
AGREED = 0.5  # what the comparison gives at least along each axis; another sign or axis gives 0 or less
FLAT = 0.01  # mean square of an axis of the depth's normals, from which it can be told where it points
SHOWN = 5  # problems of a split
AXES, CAMERA = "xyz", ("fx", "fy", "cx", "cy")
TO_VERIFY = {  # all that a set holds, in metres
    "nyuv2_labelled": {"targets": ("depth", "normals")},
    "navi": {"depth": "metric", "normals": "true", "every": 1},
}


@dataclass
class Facts:
    """What was found in one image."""

    pixels: np.ndarray | None = None  # of its labels: not counted, class 0, class 1, …
    depth: tuple[float, float, float, float] | None = None  # share of the pixels; least, median and greatest, metres
    normals: float | None = None  # share of the pixels
    camera: tuple[float, float, float, float] | None = None  # fx, fy, cx, cy


@dataclass
class Split:
    """What was found of one split."""

    expected: int | None = None  # images
    images: int = 0
    read: list[Facts] = field(default_factory=list)  # of the images that were read in full and are well
    agreement: np.ndarray | None = None  # (3,) of stored normals with those of the depth, -1 to 1 along each axis
    classes: tuple[str, ...] = ()
    boxes: Annotations | None = None
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return {
            "images": self.images,
            "expected": self.expected,
            "read_in_full": len(self.read),
            "problems": self.problems,
            "normals_as_depth": None if self.agreement is None else self.agreement.tolist(),
        }


def verify(name: str, root: str | Path | None = None, everything: bool = False, **options) -> bool:
    """Inspect a data set and print what was found; returns whether all is well."""
    splits = inspect(name, root, everything, **options)
    describe(name, root, splits)
    return not any(found.problems for found in splits.values())


def inspect(name: str, root: str | Path | None = None, everything: bool = False, **options) -> dict[str, Split]:
    """What a data set has and lacks, by split; nothing of scenes that are made as they are read.

    Every image must have targets of its size, as far as the files' headers say; SAMPLE images of each split, evenly
    spread, or all, are read in full. Stored normals are compared with those that follow from the depth. options: how to
    read it, settings of its class.
    """
    require_known(name)
    if name == "generated":
        return {}
    root = find_root(name, root)
    options = ({"targets": own_targets(root)} if name == "rgbd" else TO_VERIFY.get(name, {})) | options
    recipe = RECIPES.get(name) or Recipe(counts=dict.fromkeys(folders(root / "images")))
    return {
        split: _inspect(name, recipe, {"split": split, "root": root, **options}, everything) for split in recipe.counts
    }


def describe(name: str, root: str | Path | None, splits: dict[str, Split]) -> None:
    """Print what is wrong with a data set, a table of its splits, and what its targets hold."""
    if name == "generated":
        print("generated: the scenes are made as they are read; there is nothing to verify.")
        return
    _print_problems(splits)
    print(f"{name} in {find_root(name, root)}")
    _print_table([["split", "images", "expected", "read in full", "problems"], *map(_row, splits, splits.values())])
    read = {split: found for split, found in splits.items() if found.read}
    _print_targets(read)
    if name in OWN:
        _print_shares({split: found for split, found in read.items() if found.read[0].pixels is not None})


def _inspect(name: str, recipe: Recipe, settings: dict, everything: bool) -> Split:
    cls, split, root = SETS[name], settings["split"], settings["root"]
    expected = recipe.counts[split]
    part = root / recipe.parts.get(split, "")
    advice = None if name in OWN else f"move {part} away and run `siglip2-dense data prepare {name} --root {root}`."
    found = Split(expected)
    try:
        dataset = build(DATASETS, {"type": _lenient(cls, found.problems, advice), **settings})
    except UserError as error:
        found.images = len(found.problems)
        found.problems.append(str(error))
        return found
    found.classes = dataset.classes
    if isinstance(dataset, BoxDataset):
        found.boxes = dataset.known
    found.images = count = len(dataset) + len(found.problems)  # a problem so far is an image without its targets
    if expected is not None and count != expected:
        found.problems.append(f"{split}: {count:,} images instead of {expected:,}; {advice}")
    if recipe.objects is not None and len(dataset.objects) != recipe.objects:
        found.problems.append(f"{split}: {len(dataset.objects)} objects instead of {recipe.objects}; {advice}")

    every = range(len(dataset))
    wrong = dict(_each(partial(_compare_headers, dataset), every, f"{split}: sizes"))
    chosen = every if everything else _spread(every, SAMPLE)
    readable = [index for index in chosen if wrong[index] is None]
    well = []
    for index, result in _each(partial(_read, dataset), readable, f"{split}: reading"):
        if isinstance(result, str):
            wrong[index] = result
        else:
            found.read.append(result)
            well.append(index)
    found.problems += [wrong[index] for index in every if wrong[index]]
    if well and hasattr(cls, "signs"):
        compared = _spread(well, COMPARED)
        sums = [value for _, value in _each(partial(_products, dataset), compared, f"{split}: normals")]
        found.agreement, problems = _agreement(split, cls, sum(sums))
        found.problems += problems
    return found


def _lenient(cls: type[PixelDataset], problems: list[str], advice: str | None) -> type[PixelDataset]:
    """``cls``, except that it goes on after a file that is missing and adds the fact to ``problems``."""

    class Lenient(cls):
        def missing(self, problem: str, remedy: str) -> None:
            problems.append(f"{problem}; {advice or remedy}")

        def remedy(self, action: str) -> str:
            return super().remedy("prepare")  # not "verify", which is under way

    Lenient.__name__ = cls.__name__  # errors say it
    return Lenient


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """``count`` of them, or all, evenly spread."""
    return [indices[i] for i in sorted({i * len(indices) // count for i in range(count)})]


def _each(function: Callable, indices: Sequence[int], title: str) -> Iterator[tuple[int, object]]:
    """(index, function(index)) by several threads, with a progress bar where somebody may watch."""
    with ThreadPoolExecutor(WORKERS) as pool:
        results = tqdm(pool.map(function, indices), total=len(indices), desc=title, leave=False, disable=None)
        yield from zip(indices, results, strict=True)


def _compare_headers(dataset: PixelDataset, index: int) -> str | None:
    """What the headers of an image and of the files of its targets say is wrong; nothing of other kinds of files."""
    entry = dataset.entries[index]
    image = dataset.files(entry)[0]
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    try:
        (height, width), _ = _header(image, upright=True)
        if isinstance(dataset, BoxDataset):
            if dataset.size(entry) not in ((height, width), (width, height)):  # drawn before or after it was turned
                size = "x".join(map(str, dataset.size(entry)))
                return (
                    f"{image} is {height}x{width} pixels (height x width) but {size} in {dataset.annotations}; replace "
                    "the file that is wrong."
                )
            return None
        for target in dataset.targets:
            path = dataset.source(entry, target)
            (other_height, other_width), mode = _header(path)
            if (height, width) != (other_height, other_width):
                return (
                    f"{image} is {height}x{width} pixels (height x width) but its {target}, {path}, are {other_height}x"
                    f"{other_width}; replace the file that is wrong."
                )
            if target == "depth" and mode not in DEPTH_MODES:
                return f"{path}: holds {mode} pixels, not depth; save depth as a PNG of one channel with 16 bits."
    except UserError as error:
        return str(error)
    return None


def _header(path: Path, upright: bool = False) -> tuple[tuple[int, int], str]:
    """((height, width), mode); ``upright``: as the image is after it is turned by its EXIF orientation."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = upright and image.getexif().get(0x0112, 1) > 4
            return ((width, height) if turned else (height, width)), image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}); replace the file.") from error


def _read(dataset: PixelDataset, index: int) -> Facts | str:
    """What an image and its targets hold, or what is wrong."""
    try:
        sample = dataset[index]
        _check_saturation(dataset, index, sample)
    except UserError as error:
        return str(error)
    facts = Facts()
    if sample.labels is not None:
        facts.pixels = np.bincount(sample.labels.numpy().ravel() - IGNORE, minlength=len(dataset.classes) + 1)
    if sample.depth is not None:
        measured = sample.depth[sample.depth > 0].numpy()
        low, middle, high = (float(value) for value in np.percentile(measured, (0, 50, 100)))
        facts.depth = len(measured) / sample.depth.numel(), low, middle, high
    if sample.normals is not None:
        facts.normals = sample.normals.any(0).float().mean().item()
    if sample.intrinsics is not None:
        camera = sample.intrinsics
        facts.camera = tuple(camera[[0, 1, 0, 1], [0, 1, 2, 2]].tolist())
    return facts


def _check_saturation(dataset: PixelDataset, index: int, sample: Sample) -> None:
    """Raise UserError where a user's depth holds the greatest number of 16 bits, which sensors write for none."""
    scale = getattr(dataset, "scale", None)
    if scale is None or sample.depth is None or not (count := int((sample.depth > 65534.5 / scale).sum())):
        return
    path = dataset.source(dataset.entries[index], "depth")
    raise UserError(
        f"{path}: holds 65535, the greatest number of 16 bits, in {count:,} pixels, which is hardly a depth; give "
        "--invalid 65535 here and invalid=65535 in the config."
    )


def _products(dataset: PixelDataset, index: int) -> np.ndarray:
    """(4, 3) sums over the pixels with both, for each axis: products of stored normals and those of the depth, squares
    of the one and of the other, and the number of pixels.
    """
    sample = dataset[index]
    derived = fitted_normals(sample.depth, sample.intrinsics)
    both = sample.normals.any(0) & derived.any(0)
    stored, derived = sample.normals[:, both].double(), derived[:, both].double()
    count = torch.full((3,), stored.shape[1], dtype=torch.float64)
    return torch.stack([(stored * derived).sum(1), (stored**2).sum(1), (derived**2).sum(1), count]).numpy()


def _agreement(split: str, cls: type[PixelDataset], sums: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(3,) cosines of ``_products``, NaN for an axis that cannot be told, and what is wrong."""
    products, stored, derived, count = sums
    if not count.any():
        return np.full(3, np.nan), [
            f"{split}: no pixel has both a normal and enough depth around it to compare them by."
        ]
    cosines = np.where(derived > FLAT * count, products / np.sqrt(np.maximum(stored * derived, 1e-9)), np.nan)
    problems = [
        f"{split}: {axis} of the stored normals disagrees with the depth ({cosine:+.2f}, where 1 is the same direction "
        f"and -1 the opposite): scores would be wrong; correct {cls.__name__}.signs in the package and report it."
        for axis, cosine in zip(AXES, cosines, strict=True)
        if cosine < AGREED
    ]
    return cosines, problems


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
    return [split, f"{found.images:,}", expected, f"{len(found.read):,}", f"{len(found.problems):,}"]


def _print_targets(splits: dict[str, Split]) -> None:
    """Of each split what its depth, normals, boxes and camera are."""
    rows = [[split, *_depth(found.read)] for split, found in splits.items() if found.read[0].depth is not None]
    if rows:
        _print_table([["depth", "% of pixels", "least", "median", "greatest, m"], *rows])
    rows = [[split, *_normals(found)] for split, found in splits.items() if found.read[0].normals is not None]
    if rows:
        _print_table([["normals", "% of pixels", *(f"{axis} as depth" for axis in AXES)], *rows])
    rows = [[split, *_boxes(found.boxes)] for split, found in splits.items() if found.boxes is not None]
    if rows:
        _print_table([["boxes", "boxes", "an image", "images without", "names", "left out"], *rows])
        for split, found in splits.items():
            for reason, count in found.boxes.left_out.items():
                print(f"{split}: {count:,} boxes {reason} are not learnt from")
        print()
    cameras = {facts.camera for found in splits.values() for facts in found.read if facts.camera is not None}
    if cameras:
        ranges = [(min(values), max(values)) for values in zip(*cameras, strict=True)]
        shown = [f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}" for low, high in ranges]
        print("camera, pixels: " + ", ".join(f"{key} {text}" for key, text in zip(CAMERA, shown, strict=True)) + "\n")


def _depth(read: list[Facts]) -> list[str]:
    """The median is that of the images' medians."""
    share, low, middle, high = zip(*(facts.depth for facts in read), strict=True)
    return [f"{100 * np.mean(share):.1f}", *(f"{value:.3f}" for value in (min(low), np.median(middle), max(high)))]


def _normals(found: Split) -> list[str]:
    share = f"{100 * np.mean([facts.normals for facts in found.read]):.1f}"
    if found.agreement is None:
        return [share, "-", "-", "-"]
    return [share, *("-" if np.isnan(cosine) else f"{cosine:+.2f}" for cosine in found.agreement)]


def _boxes(known: Annotations) -> list[str]:
    """Of all images that are listed."""
    counts = np.diff(known.starts)
    names, average = len(np.unique(known.labels)), len(known.labels) / max(len(counts), 1)
    numbers = f"{len(known.labels):,}", f"{average:.1f}", f"{int((counts == 0).sum()):,}", f"{names:,}"
    return [*numbers, f"{sum(known.left_out.values()):,}"]


def _print_shares(splits: dict[str, Split]) -> None:
    """Per class its per cent of the pixels that were read, those that do not count included."""
    if not splits:
        return
    names = ["not counted", *next(iter(splits.values())).classes]
    pixels = [sum(facts.pixels for facts in found.read) for found in splits.values()]
    shares = [100 * counts / counts.sum() for counts in pixels]
    rows = [[name, *(f"{share[i]:.2f}" for share in shares)] for i, name in enumerate(names)]
    _print_table([["% of pixels read", *splits], *rows[1:], rows[0]])


def _print_table(rows: Iterable[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  ".join(cells))
    print()
