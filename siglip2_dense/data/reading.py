"""Image files to arrays: pixels are always RGB, labels and depth always the stored numbers, never colours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from siglip2_dense.errors import UserError

WORKERS = min(8, os.cpu_count() or 1)  # threads that read and write files
DEPTH_MODES = ("I;16", "I;16B", "I")  # Pillow's names of one channel of 16 bits; its versions differ
LABEL_MODES = ("L", "P", "1", "I", "I;16", "I;16B")  # Pillow's names of one channel: 8 bits, palette, 1, 32 and 16 bits


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Pillow's image of a file. Raises UserError naming it when it is missing or damaged, also while it is used."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path, or fetch the data again.") from error
    # Pillow reports a damaged PNG as SyntaxError, and a file that unpacks to far too many pixels as a "bomb".
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: truncated or not a readable image ({error}); fetch the file again.") from error


def read_image(path: str | Path, upright: bool = True) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned upright by its EXIF orientation; grey and palettes become RGB, alpha is dropped.

    upright: whether to turn it; else the pixels are as they are stored.

    Raises UserError naming the file when it is missing, damaged, or has more than 8 bits a channel.
    """
    with opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{path}: has more than 8 bits a pixel ({image.mode}); save it as an 8-bit image.")
        return np.array((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))


def read_labels(path: str | Path) -> np.ndarray:
    """(H, W) int32, the numbers stored in a PNG of one channel (8 or 16 bits) or with a palette (its indices).

    Raises UserError naming the file when it is missing, damaged, or holds colours.
    """
    with opened(path) as image:
        if image.mode not in LABEL_MODES:
            raise UserError(
                f"{path}: holds colours ({image.mode}), not class numbers; save labels as a single channel or palette."
            )
        return np.array(image).astype(np.int32)


def read_depth(path: str | Path, scale: float = 1000.0, invalid: Sequence[int] = ()) -> np.ndarray:
    """(H, W) float32, the numbers of a 16-bit PNG of one channel divided by ``scale``; 0 where there is no depth.

    invalid: stored numbers that mean "none", as 0 always does. Raises UserError naming the file when it is missing,
    damaged, has colours or only 8 bits.
    """
    with opened(path) as image:
        if image.mode not in DEPTH_MODES:
            raise UserError(
                f"{path}: holds {image.mode} pixels, not depth; save depth as a PNG of one channel with 16 bits."
            )
        stored = np.array(image)
    depth = stored / np.float32(scale)
    depth[np.isin(stored, (0, *invalid))] = 0
    return depth.astype(np.float32)
