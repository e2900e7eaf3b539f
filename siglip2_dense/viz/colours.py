"""Colours of classes, of values and of directions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from siglip2_dense.contracts import IGNORE
from siglip2_dense.label_sets import Colour

IGNORE_COLOUR: Colour = (255, 255, 255)  # in no VOC-like colour map, unlike the greys
NO_VALUE: Colour = (128, 128, 128)  # where nothing was measured; the colour maps of values have no grey
VALUES = "viridis"  # matplotlib's table of measured values; perceptually uniform
OUTLIERS = 1  # per cent of the pixels at either end that do not stretch a scale


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


def colour_values(values: np.ndarray, low: float, high: float, table: str) -> np.ndarray:
    """(H, W) floats -> (H, W, 3) uint8 of matplotlib's ``table`` from ``low`` to ``high``; beyond, its ends.

    What is not finite is grey.
    """
    import matplotlib

    known = np.isfinite(values)
    place = (np.where(known, values, low) - low) / (high - low)
    colours = matplotlib.colormaps[table](place.clip(0, 1), bytes=True)[..., :3]
    return np.where(known[..., None], colours, np.uint8(NO_VALUE))


def value_scale(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """Least and greatest value to show: of the first map with a value above 0, and a tenth of it apart at least."""
    for values in maps:
        measured = values[np.isfinite(values) & (values > 0)]
        if measured.size:
            low, high = np.percentile(measured, (OUTLIERS, 100 - OUTLIERS))
            middle, half = (low + high) / 2, max(high - low, 0.1 * high) / 2
            return middle - half, middle + half
    return 0.0, 1.0


def colour_normals(normals: np.ndarray) -> np.ndarray:
    """(3, H, W) normals of any length -> (H, W, 3) uint8, as published pictures show them; none is grey.

    The package's normals have x right, y down and z into the scene. The usual encoding, (n + 1) / 2 as red, green and
    blue, has y up and z towards the viewer, so both change sign: a wall facing the camera is light blue
    (128, 128, 255), a floor light green (128, 255, 128), and what faces right is red.
    """
    length = np.linalg.norm(normals, axis=0)
    known = np.isfinite(length) & (length > 0)
    shown = np.where(known, normals, 0) / np.where(known, length, 1) * np.array([1, -1, -1])[:, None, None]
    colours = (127.5 * (shown + 1)).round().astype(np.uint8).transpose(1, 2, 0)
    return np.where(known[..., None], colours, np.uint8(NO_VALUE))
