"""Images as users have them, on disk or in memory, as RGB pixels of 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from siglip2_dense.data.reading import opened
from siglip2_dense.errors import UserError

ImageLike = str | Path | Image.Image | np.ndarray


def pixels_of(image: ImageLike) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, of Pillow's image, or of an array.

    Files and Pillow's images are turned upright by their EXIF orientation; grey, palettes and CMYK become RGB, alpha is
    dropped, and 16 bits a channel become 8: 65535 is white. Arrays are (H, W) or (H, W, 1) grey, (H, W, 3) RGB or
    (H, W, 4) RGBA, uint8 or uint16. Raises UserError for anything else.
    """
    if isinstance(image, (str, Path)):
        with opened(image) as file:
            return _of_pillow(file, str(image))
    if isinstance(image, Image.Image):
        return _of_pillow(image, "the image")
    if isinstance(image, np.ndarray):
        return _of_array(image, "the image")
    raise UserError(
        f"an image is given as a path, a NumPy array or Pillow's image, not as {type(image).__name__}; of a tensor "
        "(3, H, W) give tensor.permute(1, 2, 0).cpu().numpy()."
    )


def _of_pillow(image: Image.Image, name: str) -> np.ndarray:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits, which Pillow's versions call I;16 or I
        values = np.array(upright)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: holds numbers from {values.min()} to {values.max()}; save it with 8 or 16 bits.")
        return _of_array(values.astype(np.uint16), name)
    if upright.mode == "F":
        raise UserError(f"{name}: holds floating-point numbers, whose range says nothing; save it with 8 or 16 bits.")
    return np.array(upright.convert("RGB"))


def _of_array(image: np.ndarray, name: str) -> np.ndarray:
    shape = image.shape
    if image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise UserError(
            f"{name}: an array of shape {shape}; give (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, without a batch."
        )
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise UserError(
            f"{name}: an array of {image.dtype}, whose range is not known; give uint8 (0 to 255) or uint16 (0 to "
            "65535)."
        )
    if image.ndim == 2 or shape[2] == 1:
        return np.repeat(image.reshape(*shape[:2], 1), 3, axis=2)
    return np.require(image[:, :, :3], requirements=["C", "W"])  # torch warns of what cannot be written to
