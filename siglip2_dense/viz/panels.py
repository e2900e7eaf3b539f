"""Pictures side by side with titles and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from siglip2_dense.contracts import IGNORE
from siglip2_dense.files import atomic
from siglip2_dense.viz.colours import Colour, colour_labels

MIN_HEIGHT = 256  # pixels; smaller pictures are enlarged
OPACITY = 0.6  # of the colours over the grey image
MAX_LEGEND = 16  # names; the rest are counted
FONT_SIZE, LINE, SWATCH, GAP = 14, 22, 14, 6  # pixels


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
    given = {"ground truth": labels, "prediction": prediction}
    maps = {title: values for title, values in given.items() if values is not None}
    pictures = [_titled("input", _enlarge(image, scale, Image.Resampling.BICUBIC))]
    for title, values in maps.items():
        if values.shape != image.shape[:2]:
            raise ValueError(
                f"the {title} is {values.shape}, but the image {image.shape[:2]}: resize one to the other."
            )
        overlay = _overlay(image, colour_labels(values, palette))
        pictures.append(_titled(title, _enlarge(overlay, scale, Image.Resampling.NEAREST)))
    row = grid(pictures, columns=len(pictures))
    legend = _legend(_by_frequency(list(maps.values())), class_names, palette, row.shape[1])
    return np.concatenate([row, legend])


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures (h, w, 3) uint8, row by row, on white: each column as wide and each row as high as its largest."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    widths = [max(picture.shape[1] for picture in pictures[i::columns]) for i in range(len(rows[0]))]
    canvas = np.full((sum(heights) + GAP * (len(heights) - 1), sum(widths) + GAP * (len(widths) - 1), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = sum(heights[:i]) + GAP * i, sum(widths[:j]) + GAP * j
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write (h, w, 3) uint8 as PNG, whole or not at all."""
    with atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def _enlarge(picture: np.ndarray, scale: int, kernel: Image.Resampling) -> np.ndarray:
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((width * scale, height * scale), kernel))


def _overlay(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours over the image in grey, so that only the classes have a hue. All (H, W, 3) uint8."""
    grey = image.mean(axis=2, keepdims=True)
    return (OPACITY * colours + (1 - OPACITY) * grey).round().astype(np.uint8)


def _by_frequency(maps: list[np.ndarray]) -> list[int]:
    """The classes of the maps without IGNORE, most pixels first."""
    values, counts = np.unique(np.concatenate([values.ravel() for values in maps] or [[]]), return_counts=True)
    return [int(value) for value in values[np.argsort(-counts, kind="stable")] if value != IGNORE]


def _titled(title: str, picture: np.ndarray) -> np.ndarray:
    strip = Image.new("RGB", (picture.shape[1], LINE), "white")
    ImageDraw.Draw(strip).text((GAP, LINE // 2), title, "black", ImageFont.load_default(FONT_SIZE), anchor="lm")
    return np.concatenate([np.asarray(strip), picture])


def _legend(classes: list[int], names: Sequence[str], palette: list[Colour], width: int) -> np.ndarray:
    """(h, width, 3) uint8: a swatch and a name for each class, in as many lines as they need."""
    font = ImageFont.load_default(FONT_SIZE)
    entries = [(names[i], tuple(palette[i])) for i in classes[:MAX_LEGEND]]
    if len(classes) > MAX_LEGEND:
        entries.append((f"+{len(classes) - MAX_LEGEND} more", None))
    x, y, places = GAP, GAP, []
    for name, colour in entries:
        length = SWATCH + GAP + int(font.getlength(name)) + 3 * GAP
        if x > GAP and x + length > width:
            x, y = GAP, y + LINE
        places.append((x, y, name, colour))
        x += length
    legend = Image.new("RGB", (width, y + LINE), "white")
    draw = ImageDraw.Draw(legend)
    for x, y, name, colour in places:
        if colour is not None:
            draw.rectangle((x, y, x + SWATCH - 1, y + SWATCH - 1), fill=colour)
            x += SWATCH + GAP
        draw.text((x, y + SWATCH // 2), name, "black", font, anchor="lm")
    return np.asarray(legend)
