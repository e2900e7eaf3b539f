"""How many images a config has and how large they reach the encoder, whether they are on this disk or not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from siglip2_dense.contracts import Sample, Size
from siglip2_dense.data.base import IMAGE_SUFFIXES, PixelDataset, data_root
from siglip2_dense.data.recipes import RECIPES, SETS
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.registry import DATASETS, TRANSFORMS, build, check_arguments

GEOMETRIC = {"ResizeShortSide", "Resize", "RandomResize", "RandomCrop", "Crop", "CenterCrop"}
TYPICAL: dict[str, Size] = {  # height and width of most images, where none is there to look at
    "ade20k": (512, 683), "ade20k_full": (512, 683), "pascal": (375, 500), "pascal_context": (375, 500),
    "pascal_context_459": (375, 500), "coco_stuff": (480, 640), "nyuv2": (480, 640),
    "nyuv2_labelled": (480, 640), "nyuv2_geonet": (480, 640), "navi": (512, 512),
}  # fmt: skip
OTHERWISE = (480, 640)
LOOKED_AT = 32  # images


@dataclass(frozen=True)
class Images:
    """What a loader of a config gives."""

    name: str
    split: str
    count: int | None  # none where nobody has published it
    counted: str  # "here", "published", "given" or "unknown"
    classes: tuple[str, ...]
    sizes: tuple[Size, ...]  # of some images after the transforms
    measured: bool  # whether these are sizes of the images themselves, and not typical ones


def images_of(config: dict, seed: int, given: int | None = None) -> Images:
    """config: of a data set. given: the number of images, which are then not looked for.

    Raises UserError for settings that the data set does not take, data that are there but not whole, and mixtures.
    """
    cls = check_arguments(DATASETS, config)
    if not issubclass(cls, PixelDataset):
        raise UserError(
            f"{cls.__name__}: its images are made of those of other sets as they come, which no plan can tell; train a "
            "few steps instead (--cfg-options train_cfg.max_iters=20), and the record says time and memory."
        )
    if cls.splits and config.get("split") not in cls.splits:
        hint = nearest(str(config.get("split")), cls.splits, f"it has {', '.join(cls.splits)}.")
        raise UserError(f"{cls.__name__} has no split {config.get('split')!r}: {hint}")
    name = getattr(cls, "name", cls.__name__)  # sets of the user's own are called after their folders
    known = {kind: key for key, kind in SETS.items()}.get(cls, "")
    absent = (cls.folder or "root" in config) and not data_root(config.get("root"), cls.folder).is_dir()
    data, count, counted = None, given, "given"
    if not absent:
        with suppress(UserError) if given is not None else nullcontext():
            data = build(DATASETS, config, seed=seed)
            name = data.name
    if count is None and data is not None:
        count, counted = len(data), "here"
    elif count is None:
        count = RECIPES[known].counts.get(config["split"]) if known in RECIPES else None
        counted = "unknown" if count is None else "published"
    originals = _sizes_of_files(data) if data is not None else []
    typical = TYPICAL.get(known, getattr(data, "size", OTHERWISE))
    return Images(
        name=name,
        split=config["split"],
        count=count,
        counted=counted,
        classes=tuple(cls.classes if data is None else data.classes),
        sizes=_after(config.get("transforms", ()), originals or [typical], seed),
        measured=data is not None,
    )


def _sizes_of_files(data) -> list[Size]:
    """Of some images, from the heads of their files; none where images are no files."""
    entries = [data.entries[i] for i in np.linspace(0, len(data) - 1, min(LOOKED_AT, len(data))).astype(int)]
    found = []
    for path in (data.files(entry)[0] for entry in entries):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            with Image.open(path) as image:
                found.append((image.height, image.width))
    return found


def _after(transforms: Sequence[dict], originals: Sequence[Size], seed: int) -> tuple[Size, ...]:
    """Sizes of images after the transforms; each original is drawn as often as it takes for LOOKED_AT."""
    for transform in transforms:
        check_arguments(TRANSFORMS, transform)
    steps = [build(TRANSFORMS, transform) for transform in transforms if transform["type"] in GEOMETRIC]
    drawn = any(transform["type"].startswith("Random") for transform in transforms)
    found = []
    for number in range(LOOKED_AT if drawn else len(originals)):
        rng = np.random.default_rng([seed, number])
        sample = Sample(image=torch.zeros(*originals[number % len(originals)], 3, dtype=torch.uint8).permute(2, 0, 1))
        for step in steps:
            sample = step(sample, rng)
        found.append(tuple(sample.image.shape[1:]))
    return tuple(found)
