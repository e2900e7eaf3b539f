"""Windows over an image."""

from __future__ import annotations

from siglip2_dense.contracts import Box, Size


def window_boxes(size: Size, crop: int | Size, stride: int | Size) -> list[Box]:
    """Windows of an image of ``size``, row by row: the last of each axis is moved back inside.

    A side shorter than the crop is taken whole. Source: ``EncoderDecoder.slide_inference`` of mmsegmentation.
    """
    crop, stride = ((value, value) if isinstance(value, int) else value for value in (crop, stride))
    tops, lefts = (
        [max(min(start, length - side), 0) for start in range(0, max(length - side + step - 1, 0) + 1, step)]
        for length, side, step in zip(size, crop, stride, strict=True)
    )
    return [(top, left, min(crop[0], size[0]), min(crop[1], size[1])) for top in tops for left in lefts]
