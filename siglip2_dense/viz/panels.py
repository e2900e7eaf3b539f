"""Pictures side by side with titles and a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from siglip2_dense.viz.colours import (
    NO_VALUE,
    OUTLIERS,
    VALUES,
    Colour,
    colour_labels,
    colour_normals,
    colour_values,
    value_scale,
)
from siglip2_dense.viz.layout import (
    MIN_COLUMN,
    MIN_HEIGHT,
    colour_bar,
    enlarge,
    grid,
    legend,
    normals_legend,
    save_picture,
    titled,
    widened,
)
from siglip2_dense.viz.overlays import by_frequency, over

__all__ = ["depth_panel", "grid", "normals_panel", "save_picture", "segmentation_panel"]

MAX_ENLARGED = 1024  # pixels; pictures with a colour bar are not enlarged beyond this width
ERRORS = "magma"  # of matplotlib's; perceptually uniform, and not to be taken for ``VALUES``


def segmentation_panel(
    image: np.ndarray,
    labels: np.ndarray | None,
    prediction: np.ndarray | None,
    class_names: Sequence[str],
    palette: list[Colour],
) -> np.ndarray:
    """Input, ground truth and prediction side by side, and below them the classes of the two maps, largest first.

    image: (H, W, 3) uint8; labels, prediction: (H, W) integers, IGNORE = not counted, or None to leave the picture out.
    Returns (h, w, 3) uint8. Raises ValueError when a map's size is not the image's or a class has no colour.
    """
    scale = max(1, -(-MIN_HEIGHT // image.shape[0]))
    maps = _given(image, labels, prediction)
    pictures = [titled("input", enlarge(image, scale, Image.Resampling.BICUBIC))]
    for title, values in maps.items():
        overlay = over(image, colour_labels(values, palette))
        pictures.append(titled(title, enlarge(overlay, scale, Image.Resampling.NEAREST)))
    row = grid(pictures, columns=len(pictures))
    names = legend(by_frequency(list(maps.values())), class_names, palette, row.shape[1])
    return np.concatenate([row, names])


def depth_panel(
    image: np.ndarray, depth: np.ndarray | None, prediction: np.ndarray | None, unit: str = "m"
) -> np.ndarray:
    """Input, ground truth, prediction and, of both, their absolute error, each map over its colour bar.

    The two maps share one scale, that of the truth's valid pixels if it has any, without the 1 % at either end.

    image: (H, W, 3) uint8; depth, prediction: (H, W) floats in ``unit``, or None to leave the picture out. What is not
    finite, and in the truth and the error also where the truth is not above 0, is grey. Returns (h, w, 3) uint8.
    Raises ValueError when a map's size is not the image's.
    """
    maps = {title: values.astype(np.float64) for title, values in _given(image, depth, prediction).items()}
    if depth is not None:
        truth = maps["ground truth"]
        truth[~(truth > 0)] = np.nan
    scale = *value_scale(maps.values()), VALUES
    unit = f" {unit}" if unit else ""
    shown = {title: (colour_values(values, *scale), (*scale, unit)) for title, values in maps.items()}
    if len(maps) == 2:
        error = np.abs(maps["prediction"] - maps["ground truth"])
        scale = 0, _top(error, least=0.01 * scale[1]), ERRORS
        shown["absolute error"] = colour_values(error, *scale), (*scale, unit)
    return _with_bars(image, shown)


def normals_panel(image: np.ndarray, normals: np.ndarray | None, prediction: np.ndarray | None) -> np.ndarray:
    """Input, ground truth, prediction and, of both, the angle between them, above a ball as legend of the colours.

    The package's normals (x right, y down, z into the scene) are drawn as published pictures draw them, x right, y up
    and z towards the viewer: y and z change sign, and a wall facing the camera is light blue (128, 128, 255).

    image: (H, W, 3) uint8; normals, prediction: (3, H, W) floats, or None to leave the picture out. The zero vector and
    what is not finite is grey. Returns (h, w, 3) uint8. Raises ValueError when a map's size is not the image's.
    """
    given = _given(image, normals, prediction, channels=(3,))
    maps = {title: values.astype(np.float64) for title, values in given.items()}
    shown = {title: (colour_normals(values), None) for title, values in maps.items()}
    if len(maps) == 2:
        error = _angle(*maps.values())
        known = error[np.isfinite(error)]
        title = f"angular error, median {np.median(known):.1f}°" if known.size else "angular error"
        scale = 0, _top(error, least=1), ERRORS
        shown[title] = colour_values(error, *scale), (*scale, "°")
    return grid([_with_bars(image, shown), normals_legend()], columns=1)


def _given(
    image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray | None, channels: tuple[int, ...] = ()
) -> dict[str, np.ndarray]:
    """The maps that there are, by title. Raises ValueError unless they are (*channels, H, W)."""
    maps = {title: v for title, v in (("ground truth", truth), ("prediction", prediction)) if v is not None}
    size = (*channels, *image.shape[:2])
    for title, values in maps.items():
        if values.shape != size:
            raise ValueError(f"the {title} is {values.shape}, but for this image {size}: resize one to the other.")
    return maps


def _top(error: np.ndarray, least: float) -> float:
    """Greatest error to show, ``least`` at least, so that a perfect prediction is not drawn as noise."""
    known = error[np.isfinite(error)]
    return max(np.percentile(known, 100 - OUTLIERS), least) if known.size else least


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(3, H, W) twice -> (H, W) degrees, NaN where either is the zero vector."""
    with np.errstate(invalid="ignore"):
        cosine = (a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def _with_bars(image: np.ndarray, shown: dict[str, tuple[np.ndarray, tuple | None]]) -> np.ndarray:
    """The input and pictures (H, W, 3) uint8 by title, with the arguments of their colour bars, if any.

    They stand side by side, or wide ones one below another, and widened for titles and ticks where they are narrow.
    """
    height, width = image.shape[:2]
    scale = max(1, min(-(-MIN_HEIGHT // height), MAX_ENLARGED // width))
    column = max(width * scale, MIN_COLUMN)
    pictures = [titled("input", widened(enlarge(image, scale, Image.Resampling.BICUBIC), column))]
    for title, (picture, bar) in shown.items():
        parts = [widened(enlarge(picture, scale, Image.Resampling.NEAREST), column)]
        if bar is not None:
            parts.append(colour_bar(*bar, width=column))
        pictures.append(titled(title, grid(parts, columns=1)))
    panel = grid(pictures, columns=1 if width > 2 * height else len(pictures))
    if any((picture == NO_VALUE).all(-1).any() for picture, _ in shown.values()):
        panel = np.concatenate([panel, legend([0], ["no value"], [NO_VALUE], panel.shape[1])])
    return panel
