"""From files to samples. Importing this registers the data sets and the transforms."""

from siglip2_dense.data import (
    ade20k,
    ade20k_full,
    boxes,
    coco_stuff,
    folder,
    generated,
    loading,
    navi,
    nyuv2,
    pascal,
    pascal_context,
    rgbd,
    subset,
    transforms,
)

__all__ = [
    "ade20k",
    "ade20k_full",
    "boxes",
    "coco_stuff",
    "folder",
    "generated",
    "loading",
    "navi",
    "nyuv2",
    "pascal",
    "pascal_context",
    "rgbd",
    "subset",
    "transforms",
]
