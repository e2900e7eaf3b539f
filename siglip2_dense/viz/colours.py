"""Colours of classes."""

from __future__ import annotations

import numpy as np

from siglip2_dense.contracts import IGNORE
from siglip2_dense.label_sets import Colour

"""(red, green, blue), 0-255."""

IGNORE_COLOUR: Colour = (255, 255, 255)  # in no VOC-like colour map, unlike the greys


def palette(num_classes: int) -> list[Colour]:
    """The colour map of PASCAL VOC, which has distinct colours for any number of classes; the first is black.

    The bits of a class number go in turn to red, green and blue, the lowest bits to the highest places.
    Source: VOCdevkit's VOClabelcolormap.m.
    """

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * place + first) & 1) << (7 - place) for place in range(8))

    return [(channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_classes)]


def colour_labels(labels: np.ndarray, palette: list[Colour]) -> np.ndarray:
    """(H, W) integer classes -> (H, W, 3) uint8; IGNORE is white.

    Raises ValueError for a class without a colour.
    """
    if labels.size and (labels.max() >= len(palette) or labels.min() < IGNORE):
        raise ValueError(
            f"labels hold {labels.min()} to {labels.max()}, but the palette has {len(palette)} colours: "
            f"give a colour for each class, and IGNORE ({IGNORE}) where there is none."
        )
    return np.array([*palette, IGNORE_COLOUR], dtype=np.uint8)[labels]  # IGNORE = -1 takes the last
