"""A model of class names at work on a user's images: labels, a picture to look at, and what the labels mean."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from siglip2_dense.contracts import Sample
from siglip2_dense.data.reading import read_image
from siglip2_dense.engine.configs import check_keys
from siglip2_dense.engine.evaluate import open_probe, read_head, test_loading
from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic, write_text
from siglip2_dense.label_sets import Colour, classes_of
from siglip2_dense.registry import TRANSFORMS, build
from siglip2_dense.tasks.queries import BACKGROUND
from siglip2_dense.viz.colours import palette
from siglip2_dense.viz.panels import overlay_panel, save_picture

PRINTED = 5  # classes of an image, the largest first


def parse_prompts(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """Class names and what they are asked for by, of "wicker chair, sofa|couch, floor" or a file of such names.

    Of several between strokes the first is the name. Raises UserError for names that are empty, or stand for two
    things.
    """
    entries = classes_of(text) if _is_file(text) else text.split(",")
    if not any(map(str.strip, entries)):
        raise UserError('--prompts: no name is there; say what to look for, "wicker chair, sofa|couch, floor".')
    classes, queries = [], {}
    for entry in entries:
        name, *others = (part.strip() for part in entry.split("|"))
        if not all((name, *others)):
            raise UserError(
                f"--prompts: {entry.strip()!r} has an empty name; write one between any two commas or strokes."
            )
        classes.append(name)
        if others:
            queries[name] = [name, *others]
    classes = list(classes_of(classes))
    stands_for: dict[str, str] = {}
    for name in classes:
        for one in queries.get(name, [name]):
            other = stands_for.setdefault(" ".join(one.lower().split()), name)
            if other != name:  # of equal scores the first wins everywhere
                raise UserError(f"--prompts: {one!r} stands for both {other!r} and {name!r}; give each its own names.")
    return classes, queries


def check_paths(paths: Sequence[str]) -> None:
    """Raise UserError for images of one name, whose predictions would lie over each other, and where none is there."""
    if not any(Path(path).is_file() for path in paths):
        raise UserError(f"none of the images is there: {', '.join(map(str, paths))}; check the paths.")
    name, times = Counter(Path(path).stem for path in paths).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{times} of the images are called {name!r}; predict them into folders of their own, with --out."
        )


def readable(paths: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Paths and images (H, W, 3) uint8 RGB. One that cannot be read is named and left out; the UserError comes after
    the last.
    """
    failed = []
    for path in paths:
        try:
            image = read_image(path)
        except UserError as error:
            print(f"{path} is left out: {error}")
            failed.append(str(path))
        else:
            yield path, image
    if failed:
        raise UserError(f"{len(failed)} of {len(paths)} images could not be read: {', '.join(failed)}.")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path
        return False


def ask(probe, classes: list[str], queries: dict[str, list[str]], background: float | None = None) -> None:
    """Give a model a user's names.

    background: a pixel whose best name has a probability below it is of the class "background", which is the first
    then; one that is among the names is asked for besides.
    """
    if background is not None:
        if BACKGROUND not in classes:
            queries = {**queries, BACKGROUND: []}
        classes = [BACKGROUND, *(name for name in classes if name != BACKGROUND)]
    probe.set_vocabulary(classes, queries, *([] if background is None else [background]))


def segment(probe, image: np.ndarray, transforms: Sequence = ()) -> np.ndarray:
    """(H, W) int64 classes of an image (H, W, 3) uint8 RGB, by the probe's first head.

    transforms: those of a test.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    sample, numbers = Sample(image=pixels, original_size=image.shape[:2]), np.random.default_rng(0)
    for transform in transforms:
        sample = transform(sample, numbers)
    batch = {"inputs": [sample.image.contiguous()], "data_samples": [sample]}
    (found,) = probe.eval()(**probe.data_preprocessor(batch, False), mode="predict")
    return next(iter(found.values())).cpu().numpy()


def predict_files(
    config: Config,
    head: str | None,
    prompts: str,
    paths: Sequence[str],
    out: str | Path,
    background: float | None = None,
) -> None:
    """For each image write ``OUT/STEM_labels.png``, ``STEM_overlay.png`` and ``STEM.json``, and print its classes.

    An image that cannot be read is named and left out; the error comes at the end.
    """
    check_keys(config)
    check_paths(paths)
    classes, queries = parse_prompts(prompts)  # what is wrong with them is said before the model is loaded
    transforms = [build(TRANSFORMS, one) for one in test_loading(config)["dataset"].get("transforms", [])]
    probe = open_probe(config, read_head(config, head), head)
    if hasattr(probe, "set_examples"):
        raise UserError(f"{type(probe).__name__} finds boxes; give --task detect.")
    ask(probe, classes, queries, background)
    (task, *_) = probe.tasks.values()
    for path, image in readable(paths):
        labels = segment(probe, image, transforms)
        write(Path(out) / Path(path).stem, image, labels, task, str(path))


def write(place: Path, image: np.ndarray, labels: np.ndarray, task, source: str) -> None:
    """The labels, in a palette or, of more than 256 classes, 16 bits, the overlay, and what the labels mean."""
    colours = colours_of(task.classes)
    shares = np.bincount(labels.ravel(), minlength=len(task.classes)) / labels.size
    picture = Image.fromarray(labels.astype(np.uint8 if len(colours) <= 256 else np.uint16))
    if len(colours) <= 256:
        picture.putpalette([value for colour in colours for value in colour])
    with atomic(place.with_name(f"{place.name}_labels.png")) as temporary:
        picture.save(temporary, format="PNG")
    save_picture(place.with_name(f"{place.name}_overlay.png"), overlay_panel(image, labels, task.classes, colours))
    meaning = {
        str(label): {"name": name, "colour": f"#{bytes(colours[label]).hex()}", "share": round(float(shares[label]), 6)}
        for label, name in enumerate(task.classes)
    }
    write_text(place.with_name(f"{place.name}.json"), json.dumps({"image": source, "labels": meaning}, indent=2) + "\n")
    most = [label for label in np.argsort(-shares, kind="stable")[:PRINTED] if shares[label]]
    print(f"{source} -> {place}_overlay.png: " + ", ".join(f"{task.classes[i]} {shares[i]:.0%}" for i in most))


def colours_of(classes: Sequence[str]) -> list[Colour]:
    """Distinct ones; black, the first of them, is for the background alone."""
    first = 0 if classes[0] == BACKGROUND else 1
    return palette(len(classes) + first)[first:]
