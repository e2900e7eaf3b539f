"""Predictions over their image, in one picture with a legend: what a user looks at, where no truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from siglip2_dense.contracts import IGNORE
from siglip2_dense.resample import resize_image
from siglip2_dense.viz.colours import VALUES, Colour, colour_labels, colour_normals, colour_values, value_scale
from siglip2_dense.viz.layout import MIN_COLUMN, MIN_HEIGHT, colour_bar, enlarge, grid, legend, normals_legend, widened

MAX_OVERLAY = 2048  # pixels; larger ones are shrunk, or nobody could read the names
OPACITY = 0.6  # of the colours over the grey image


def over(image: np.ndarray, colours: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """Colours over the image in grey, so that only they have a hue. All (H, W, 3) uint8."""
    grey = image.mean(axis=2, keepdims=True)
    return (opacity * colours + (1 - opacity) * grey).round().astype(np.uint8)


def overlay_panel(
    image: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    palette: list[Colour],
    opacity: float = OPACITY,
) -> np.ndarray:
    """The classes over the image, at most MAX_OVERLAY pixels wide and high, and below it their names, largest first.

    image: (H, W, 3) uint8; prediction: (H, W) integers, IGNORE = none. Returns (h, w, 3) uint8. Raises ValueError when
    the map's size is not the image's or a class has no colour.
    """
    names = by_frequency([prediction])
    image, prediction = _shrunk(image, prediction)
    overlay = _enlarged(over(image, colour_labels(prediction, palette), opacity))
    return np.concatenate([overlay, legend(names, class_names, palette, overlay.shape[1])])


def depth_overlay(image: np.ndarray, depth: np.ndarray, unit: str = "m", opacity: float = OPACITY) -> np.ndarray:
    """Depths (H, W), in colours over the image, above their colour bar; otherwise as ``overlay_panel``."""
    low, high = value_scale([depth])
    image, depth = _shrunk(image, depth)
    overlay = _enlarged(over(image, colour_values(depth, low, high, VALUES), opacity))
    bar = colour_bar(low, high, VALUES, f" {unit}" if unit else "", overlay.shape[1])
    return grid([overlay, bar], columns=1)


def normals_overlay(image: np.ndarray, normals: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """Normals (3, H, W), as ``colour_normals`` draws them, over the image, above a ball that says what they mean;
    otherwise as ``overlay_panel``.
    """
    image, normals = _shrunk(image, normals)
    return grid([_enlarged(over(image, colour_normals(normals), opacity)), normals_legend()], columns=1)


def by_frequency(maps: Sequence[np.ndarray]) -> list[int]:
    """The classes of the maps without IGNORE, most pixels first."""
    values, counts = np.unique(np.concatenate([values.ravel() for values in maps] or [[]]), return_counts=True)
    return [int(value) for value in values[np.argsort(-counts, kind="stable")] if value != IGNORE]


def _shrunk(image: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image and its map (..., H, W), of which the nearest values are taken, at a size to look at."""
    size = image.shape[:2]
    if values.shape[-2:] != size:
        raise ValueError(f"the map is {values.shape[-2:]}, but the image {size}: resize one to the other.")
    if max(size) <= MAX_OVERLAY:
        return image, values
    smaller = tuple(max(round(side * MAX_OVERLAY / max(size)), 1) for side in size)
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(smaller, size, strict=True))
    return resize_image(image, smaller), values[..., rows[:, None], columns]


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """Large enough to be seen, and as wide as a legend."""
    scale = max(1, -(-MIN_HEIGHT // max(picture.shape[:2])))
    picture = enlarge(picture, scale, Image.Resampling.NEAREST)
    return widened(picture, max(picture.shape[1], MIN_COLUMN))
