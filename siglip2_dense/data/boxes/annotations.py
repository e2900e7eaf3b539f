"""Annotation files of boxes to arrays: COCO's format in its dialects, with what cannot be learnt from left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from siglip2_dense.errors import UserError, first_line

LEFT_OUT = ("around crowds", "without an area", "outside their image", "of names not marked completely in their image")
CROWD, EMPTY, OUTSIDE, INCOMPLETE = range(len(LEFT_OUT))


@dataclass(frozen=True)
class Annotations:
    """What a file says of n images with m boxes, which stand in the order of their images. A label is 0 to K - 1."""

    classes: tuple[str, ...]  # the name of each label, in the order of the file's ids
    category_ids: np.ndarray  # (K,) int64, the file's id of each label
    image_ids: np.ndarray  # (n,) int64
    files: list[str]  # of each image, below the root
    sizes: np.ndarray  # (n, 2) int64 height and width
    boxes: np.ndarray  # (m, 4) float32 x0 y0 x1 y1, inside their images
    labels: np.ndarray  # (m,) int64
    starts: np.ndarray  # (n + 1,) int64: the boxes of image i are starts[i] to starts[i + 1] - 1
    unsure: dict[int, frozenset[int]]  # of an image, labels of which it may hold things that have no box here
    absent: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of an image, labels that it was checked for
    left_out: dict[str, int] = field(default_factory=dict)  # boxes of the file that are not among these, by reason

    def of(self, image: int) -> slice:
        """Where the boxes of an image are."""
        return slice(self.starts[image], self.starts[image + 1])


def read_coco(path: Path, file_of: Callable[[dict], str]) -> Annotations:
    """A file in COCO's format, and LVIS's lists of what an image was checked for and what is not marked completely.

    file_of: from an entry of "images" to its file below the root. Boxes around crowds, without an area, outside their
    image, or of a category that is not marked completely in it are left out; the others are cut at its edges. Raises
    UserError for a file that is missing, cut off, or not in this format, and for ids that it does not define.
    """
    content = read_json(path)
    with format_is_named(path):
        categories = sorted(content["categories"], key=lambda category: category["id"])
        images, annotations = content["images"], content["annotations"]
        category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
        image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        ids, owners, labels = (_column(annotations, key) for key in ("id", "image_id", "category_id"))
        places = _places(path, owners, image_ids, ids, "image")
        labels = _places(path, labels, category_ids, ids, "category")
        boxes = _boxes(path, annotations)
        crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=bool)
        sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)
        for category in categories:
            if not isinstance(category["name"], str):
                raise UserError(
                    f"{path}: the category {category['id']} is called {category['name']!r}; give it a name."
                )
        label_of = {number: label for label, number in enumerate(category_ids.tolist())}
        listed = {
            key: {
                place: [label_of[number] for number in image[key]]
                for place, image in enumerate(images)
                if image.get(key)
            }
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
        }
        return arranged(
            tuple(category["name"] for category in categories),
            category_ids,
            image_ids,
            [file_of(image) for image in images],
            sizes,
            places,
            labels,
            boxes,
            crowd,
            *listed.values(),
        )


def arranged(
    classes: tuple[str, ...],
    category_ids: np.ndarray,
    image_ids: np.ndarray,
    files: list[str],
    sizes: np.ndarray,
    places: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
    crowd: np.ndarray | None = None,
    absent: dict[int, list[int]] | None = None,
    incomplete: dict[int, list[int]] | None = None,
) -> Annotations:
    """Boxes (m, 4) x y w h of any order, with the places (m,) of their images among the n and their labels (m,), put in
    order; crowd: (m,) bool; absent, incomplete: of an image, labels it was checked for, and not marked completely.
    """
    absent, incomplete = absent or {}, incomplete or {}
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    edges = sizes[places][:, ::-1]  # width, height
    cut = np.concatenate([np.clip(low, 0, edges), np.clip(high, 0, edges)], axis=1).astype(np.float32)
    inexact = {place * len(classes) + label for place, some in incomplete.items() for label in some}
    reasons = np.full(len(boxes), -1)
    reasons[np.isin(places * len(classes) + labels, list(inexact))] = INCOMPLETE
    reasons[~(cut[:, :2] < cut[:, 2:]).all(1)] = OUTSIDE
    reasons[~(boxes[:, 2:] > 0).all(1) | ~np.isfinite(boxes).all(1)] = EMPTY
    if crowd is not None:
        reasons[crowd] = CROWD

    unsure = {place: set(some) for place, some in incomplete.items()}
    for place, label in zip(places[reasons >= 0].tolist(), labels[reasons >= 0].tolist(), strict=True):
        unsure.setdefault(place, set()).add(label)
    kept = np.flatnonzero(reasons < 0)
    kept = kept[np.argsort(places[kept], kind="stable")]
    counts = Counter(reasons[reasons >= 0].tolist())
    return Annotations(
        classes=classes,
        category_ids=category_ids,
        image_ids=image_ids,
        files=files,
        sizes=sizes,
        boxes=cut[kept],
        labels=labels[kept],
        starts=np.searchsorted(places[kept], np.arange(len(files) + 1)),
        unsure={place: frozenset(some) for place, some in unsure.items()},
        absent={place: tuple(some) for place, some in absent.items()},
        left_out={LEFT_OUT[reason]: counts[reason] for reason in sorted(counts)},
    )


def read_json(path: Path):
    """Raises UserError for a file that is missing, cut off, or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path, or fetch the annotations again.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cut off, or not JSON ({first_line(error)}); fetch it again.") from error


@contextmanager
def format_is_named(path: Path) -> Iterator[None]:
    """What goes wrong inside is the file's fault: it holds something else than it should."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: not in the format of its kind ({first_line(error)}); fetch the official file again, or write "
            "images, annotations and categories as COCO's instances files have them."
        ) from error


def _column(annotations: Sequence[dict], key: str) -> np.ndarray:
    return np.fromiter((annotation[key] for annotation in annotations), np.int64, len(annotations))


def _places(path: Path, wanted: np.ndarray, known: np.ndarray, ids: np.ndarray, kind: str) -> np.ndarray:
    """Where each of the wanted (m,) is among the known ids (n,). Raises UserError for one that is not, or is twice."""
    order = np.argsort(known, kind="stable")
    ranked = known[order]
    if len(ranked) > 1 and (twice := ranked[1:][ranked[1:] == ranked[:-1]]).size:
        raise UserError(f"{path}: has two entries of the {kind} {twice[0]}; give each an id of its own.")
    found = np.searchsorted(ranked, wanted).clip(max=max(len(ranked) - 1, 0))
    lost = np.ones(len(wanted), dtype=bool) if not len(ranked) else ranked[found] != wanted
    if lost.any():
        first = int(np.argmax(lost))
        raise UserError(
            f"{path}: the annotation {ids[first]} is of the {kind} {wanted[first]}, which the file does not define "
            f"({int(lost.sum())} such annotations); remove them, or add the {kind}."
        )
    return order[found]


def _boxes(path: Path, annotations: Sequence[dict]) -> np.ndarray:
    """(m, 4) float64; an annotation without a box has an empty one."""
    rows = [annotation.get("bbox") or (0, 0, 0, 0) for annotation in annotations]
    for annotation, row in zip(annotations, rows, strict=True):
        if len(row) != 4:
            raise UserError(f"{path}: the box of the annotation {annotation['id']} is {row}; give x, y, width, height.")
    return np.array(rows, dtype=np.float64).reshape(-1, 4)
