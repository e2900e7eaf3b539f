"""Boxes with names over an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from siglip2_dense.resample import resize_image
from siglip2_dense.viz.colours import Colour
from siglip2_dense.viz.layout import FONT_SIZE, GAP, grid, titled

MIN_SIDE, MAX_SIDE = 256, 2048  # pixels; other pictures are brought to that, so that names can be read

Drawn = tuple[np.ndarray, Sequence[str], Sequence[Colour]]
"""Boxes (n, 4) x0 y0 x1 y1 in pixels, and for each its name and its colour."""


def boxes_panel(image: np.ndarray, drawn: Drawn) -> np.ndarray:
    """Frames and names over an image (H, W, 3) uint8; the first lie on top. Returns (h, w, 3) uint8."""
    side = max(image.shape[:2])
    scale = MAX_SIDE / side if side > MAX_SIDE else max(1, -(-MIN_SIDE // side))
    if scale != 1:
        image = resize_image(image, tuple(max(round(length * scale), 1) for length in image.shape[:2]))
    return with_boxes(image, drawn, scale)


def with_boxes(image: np.ndarray, drawn: Drawn, scale: float = 1) -> np.ndarray:
    """The same at the image's own size. scale: what the boxes are to be multiplied by."""
    picture = Image.fromarray(image)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
    width, height = picture.size
    line = max(2, round(max(picture.size) / 400))
    for box, name, colour in reversed(list(zip(*drawn, strict=True))):
        edges = np.asarray(box, dtype=float) * scale
        x0, y0, x1, y1 = (round(float(v)) for v in np.clip(edges, 0, [width - 1, height - 1] * 2))
        draw.rectangle((x0, y0, max(x1, x0), max(y1, y0)), outline=tuple(colour), width=line)
        if not name:
            continue
        length = int(np.ceil(font.getlength(name))) + GAP
        left = max(min(x0, width - length), 0)
        top = y0 - FONT_SIZE - GAP if y0 >= FONT_SIZE + GAP else y0
        draw.rectangle((left, top, left + length, top + FONT_SIZE + GAP - 1), fill=tuple(colour))
        ink = "black" if 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > 128 else "white"
        draw.text((left + GAP // 2, top + (FONT_SIZE + GAP) // 2), name, ink, font, anchor="lm")
    return np.asarray(picture)


def detection_panel(image: np.ndarray, truth: Drawn | None, found: Drawn) -> np.ndarray:
    """What is there, where it is known, and what was found, side by side."""
    pictures = [] if truth is None else [titled("ground truth", boxes_panel(image, truth))]
    pictures.append(titled("prediction", boxes_panel(image, found)))
    return grid(pictures, columns=len(pictures))
