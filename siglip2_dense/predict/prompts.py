"""What a model of names is asked for, as users say it: names, several of one thing, or examples in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from siglip2_dense.data.images import ImageLike, pixels_of
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import Colour, classes_of
from siglip2_dense.tasks.queries import BACKGROUND
from siglip2_dense.viz.colours import palette

EXAMPLE = "like the example"  # what is found by an example is called

Example = tuple[ImageLike, Sequence[float]]
"""An image, and a box (x0, y0, x1, y1) in its pixels."""


def parse_prompts(prompts: str | Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Class names and what they are asked for by, of ["wicker chair", "sofa|couch"], of "wicker chair, sofa|couch", or
    of a file of such names.

    Of several between strokes the first is the name. Raises UserError for names that are empty, or stand for two
    things.
    """
    entries = prompts
    if isinstance(prompts, (str, Path)):
        entries = classes_of(prompts) if _is_file(prompts) else str(prompts).split(",")
    if not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"prompts: {entries!r} are no names; give a list of words, or one text with commas.")
    if not any(map(str.strip, entries)):
        raise UserError('prompts: no name is there; say what to look for, "wicker chair, sofa|couch, floor".')
    classes, queries = [], {}
    for entry in entries:
        name, *others = (part.strip() for part in entry.split("|"))
        if not all((name, *others)):
            raise UserError(
                f"prompts: {entry.strip()!r} has an empty name; write one between any two commas or strokes."
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
                raise UserError(f"prompts: {one!r} stands for both {other!r} and {name!r}; give each its own names.")
    return classes, queries


def _is_file(text: str | Path) -> bool:
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


def show(probe, examples: Mapping[str, Sequence[Example]]) -> None:
    """Give a detector examples, of each name one or several, to find what looks like them."""
    probe.set_examples(
        {
            name: [(torch.from_numpy(pixels_of(image)).permute(2, 0, 1).contiguous(), box) for image, box in shown]
            for name, shown in examples.items()
        }
    )


def parse_example(image: str, box: str) -> Example:
    """An image file and "x0,y0,x1,y1" in its pixels."""
    try:
        corners = tuple(float(part) for part in box.split(","))
    except ValueError:
        corners = ()
    if len(corners) != 4:
        raise UserError(f"--example {image} {box}: give the box as x0,y0,x1,y1 in pixels, such as 10,20,200,180.")
    return image, corners


def colours_of(classes: Sequence[str]) -> list[Colour]:
    """Distinct ones; black, the first of them, is for the background alone."""
    first = 0 if classes[0] == BACKGROUND else 1
    return palette(len(classes) + first)[first:]
