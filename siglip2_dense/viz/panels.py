"""Pictures side by side with titles and a legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from siglip2_dense.contracts import IGNORE
from siglip2_dense.resample import resize_image, resize_labels
from siglip2_dense.viz.colours import NO_VALUE, Colour, colour_labels, colour_normals, colour_values
from siglip2_dense.viz.layout import (
    colour_bar,
    enlarge,
    grid,
    legend,
    normals_legend,
    save_picture,
    titled,
)

__all__ = ["depth_panel", "grid", "normals_panel", "overlay_panel", "save_picture", "segmentation_panel"]

MIN_HEIGHT = 256  # pixels; smaller pictures are enlarged
MAX_OVERLAY = 2048  # pixels; larger ones are shrunk, or nobody could read the names
MAX_ENLARGED = 1024  # pixels; pictures with a colour bar are not enlarged beyond this width
MIN_COLUMN = 240  # pixels; room for every title, and for two labels of any colour bar
OPACITY = 0.6  # of the colours over the grey image
VALUES, ERRORS = "viridis", "magma"  # matplotlib's; perceptually uniform, and not to be taken for one another
OUTLIERS = 1  # per cent of the pixels at either end that do not stretch a scale


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
        overlay = _overlay(image, colour_labels(values, palette))
        pictures.append(titled(title, enlarge(overlay, scale, Image.Resampling.NEAREST)))
    row = grid(pictures, columns=len(pictures))
    names = legend(_by_frequency(list(maps.values())), class_names, palette, row.shape[1])
    return np.concatenate([row, names])


def overlay_panel(
    image: np.ndarray, prediction: np.ndarray, class_names: Sequence[str], palette: list[Colour]
) -> np.ndarray:
    """The classes over the image, at most MAX_OVERLAY pixels wide and high, and below it their names, largest first.

    image: (H, W, 3) uint8; prediction: (H, W) integers, IGNORE = none. Returns (h, w, 3) uint8. Raises ValueError when
    the map's size is not the image's or a class has no colour.
    """
    _given(image, None, prediction)
    names = _by_frequency([prediction])
    smaller = min(1, MAX_OVERLAY / max(image.shape[:2]))
    if smaller < 1:
        height, width = (max(round(side * smaller), 1) for side in image.shape[:2])
        image, prediction = resize_image(image, (height, width)), resize_labels(prediction, (height, width))
    scale = max(1, -(-MIN_HEIGHT // max(image.shape[:2])))
    overlay = enlarge(_overlay(image, colour_labels(prediction, palette)), scale, Image.Resampling.NEAREST)
    overlay = _widened(overlay, max(overlay.shape[1], MIN_COLUMN))
    return np.concatenate([overlay, legend(names, class_names, palette, overlay.shape[1])])


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
    scale = *_scale(maps.values()), VALUES
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


def _scale(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """Least and greatest value to show: of the first map with a value above 0, and a tenth of it apart at least."""
    for values in maps:
        measured = values[np.isfinite(values) & (values > 0)]
        if measured.size:
            low, high = np.percentile(measured, (OUTLIERS, 100 - OUTLIERS))
            middle, half = (low + high) / 2, max(high - low, 0.1 * high) / 2
            return middle - half, middle + half
    return 0.0, 1.0


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
    pictures = [titled("input", _widened(enlarge(image, scale, Image.Resampling.BICUBIC), column))]
    for title, (picture, bar) in shown.items():
        parts = [_widened(enlarge(picture, scale, Image.Resampling.NEAREST), column)]
        if bar is not None:
            parts.append(colour_bar(*bar, width=column))
        pictures.append(titled(title, grid(parts, columns=1)))
    panel = grid(pictures, columns=1 if width > 2 * height else len(pictures))
    if any((picture == NO_VALUE).all(-1).any() for picture, _ in shown.values()):
        panel = np.concatenate([panel, legend([0], ["no value"], [NO_VALUE], panel.shape[1])])
    return panel


def _widened(picture: np.ndarray, width: int) -> np.ndarray:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)


def _overlay(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours over the image in grey, so that only the classes have a hue. All (H, W, 3) uint8."""
    grey = image.mean(axis=2, keepdims=True)
    return (OPACITY * colours + (1 - OPACITY) * grey).round().astype(np.uint8)


def _by_frequency(maps: list[np.ndarray]) -> list[int]:
    """The classes of the maps without IGNORE, most pixels first."""
    values, counts = np.unique(np.concatenate([values.ravel() for values in maps] or [[]]), return_counts=True)
    return [int(value) for value in values[np.argsort(-counts, kind="stable")] if value != IGNORE]
