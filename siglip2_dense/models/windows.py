"""Windows over an image, and how a config asks for them."""

from __future__ import annotations

from siglip2_dense.contracts import Box, Size
from siglip2_dense.errors import UserError


def checked_inference(inference: dict) -> dict:
    """The inference of a probe as a plain dict; raises UserError for what is none."""
    wanted = {"whole": {"mode"}, "slide": {"mode", "crop", "stride"}}.get(inference.get("mode"))
    if wanted is None or set(inference) - {"flip"} != wanted or not isinstance(inference.get("flip", False), bool):
        raise UserError(
            f"inference={dict(inference)}: give dict(mode='whole') or dict(mode='slide', crop=PIXELS, stride=PIXELS), "
            "and flip=True beside either to average with the mirrored image."
        )
    for axis in zip(*(pair(inference[key]) for key in ("crop", "stride")), strict=True) if len(wanted) > 1 else ():
        if not 0 < axis[1] <= axis[0]:
            raise UserError(f"inference={dict(inference)}: windows leave gaps unless 0 < stride <= crop.")
    return dict(inference)


def pair(value: int | Size) -> Size:
    return (value, value) if isinstance(value, int) else tuple(value)


def window_boxes(size: Size, crop: int | Size, stride: int | Size) -> list[Box]:
    """Windows of an image of ``size``, row by row: the last of each axis is moved back inside.

    A side shorter than the crop is taken whole. Source: ``EncoderDecoder.slide_inference`` of mmsegmentation.
    """
    crop, stride = pair(crop), pair(stride)
    tops, lefts = (
        [max(min(start, length - side), 0) for start in range(0, max(length - side + step - 1, 0) + 1, step)]
        for length, side, step in zip(size, crop, stride, strict=True)
    )
    return [(top, left, min(crop[0], size[0]), min(crop[1], size[1])) for top in tops for left in lefts]
