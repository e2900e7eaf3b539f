"""What panels are put together from: pictures in rows, titles, legends and colour bars. All are (h, w, 3) uint8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from siglip2_dense.files import atomic
from siglip2_dense.viz.colours import Colour, colour_normals, colour_values

MAX_LEGEND = 16  # names; the rest are counted
FONT_SIZE, LINE, SWATCH, GAP = 14, 22, 14, 6  # pixels
BAR, TICK, TICK_SPACE = 12, 4, 80  # pixels: height of a colour bar, of its marks, and width for a mark's label
BALL = 84  # pixels: diameter of the legend of normals
MIN_HEIGHT = 256  # pixels; smaller pictures are enlarged
MIN_COLUMN = 240  # pixels; room for every title, and for two labels of any colour bar


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


def enlarge(picture: np.ndarray, scale: int, kernel: Image.Resampling) -> np.ndarray:
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((width * scale, height * scale), kernel))


def widened(picture: np.ndarray, width: int) -> np.ndarray:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)


def titled(title: str, picture: np.ndarray) -> np.ndarray:
    strip = Image.new("RGB", (picture.shape[1], LINE), "white")
    ImageDraw.Draw(strip).text((GAP, LINE // 2), title, "black", ImageFont.load_default(FONT_SIZE), anchor="lm")
    return np.concatenate([np.asarray(strip), picture])


def legend(classes: list[int], names: Sequence[str], palette: Sequence[Colour], width: int) -> np.ndarray:
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
    canvas = Image.new("RGB", (width, y + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for x, y, name, colour in places:
        if colour is not None:
            draw.rectangle((x, y, x + SWATCH - 1, y + SWATCH - 1), fill=colour)
            x += SWATCH + GAP
        draw.text((x, y + SWATCH // 2), name, "black", font, anchor="lm")
    return np.asarray(canvas)


def colour_bar(low: float, high: float, table: str, unit: str, width: int) -> np.ndarray:
    """(BAR + LINE, width, 3) uint8: the colours of ``colour_values`` with round values and ``unit`` below them."""
    from matplotlib.ticker import MaxNLocator

    colours = colour_values(np.linspace(low, high, width)[None], low, high, table)
    canvas = Image.fromarray(np.concatenate([colours.repeat(BAR, 0), np.full((LINE, width, 3), 255, np.uint8)]))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    locator = MaxNLocator(max(1, min(width // TICK_SPACE, 5)), steps=(1, 2, 5, 10))
    ticks = np.asarray(locator.tick_values(low, high))
    free = 0  # from here on no label stands
    for tick in ticks[(ticks >= low) & (ticks <= high)]:
        x = round((tick - low) / (high - low) * (width - 1))
        label = f"{tick:g}{unit}"
        length = int(np.ceil(font.getlength(label)))
        left = min(max(x - length // 2, GAP), width - length - GAP)  # off the labels of the next bar
        if left >= free:
            draw.line((x, BAR, x, BAR + TICK - 1), "black")
            draw.text((left, BAR + TICK + 1), label, "black", font, anchor="lt")
            free = left + length + GAP
    return np.asarray(canvas)


def normals_legend() -> np.ndarray:
    """(BALL, w, 3) uint8: the half of a sphere that the camera sees in the colours of ``colour_normals``, in words."""
    across = (np.arange(BALL) + 0.5) / BALL * 2 - 1
    x, y = np.meshgrid(across, across)
    inside = x**2 + y**2 < 1
    ball = colour_normals(np.stack([x, y, -np.sqrt(np.where(inside, 1 - x**2 - y**2, 1))]))
    lines = ("a ball in these colours", "red: faces right", "green: faces up", "blue: faces the camera")
    font = ImageFont.load_default(FONT_SIZE)
    text = Image.new("RGB", (2 * GAP + int(max(map(font.getlength, lines))), BALL), "white")
    for i, line in enumerate(lines):
        middle = BALL // 2 + (2 * i + 1 - len(lines)) * LINE // 2
        ImageDraw.Draw(text).text((GAP, middle), line, "black", font, anchor="lm")
    return np.concatenate([np.where(inside[..., None], ball, np.uint8(255)), np.asarray(text)], axis=1)
