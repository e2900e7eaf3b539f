"""A data set in two parts: the images that heads train on, and those held out to choose among them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from siglip2_dense.contracts import Sample
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build

SIDES = ("kept", "held out")


def held_count(size: int, fraction: float) -> int:
    """How many of so many images are held out: at least one, and not all."""
    return min(max(round(size * fraction), 1), size - 1)


def held_out(size: int, fraction: float, seed: int) -> np.ndarray:
    """(size,) bool: which images of a set are held out.

    They are runs of neighbours in the order of the set, about as many runs as each has images: neighbours may be frames
    of one video, nearly the same, and single ones drawn from all over would lie beside images that are trained on. Of
    runs only the ends do.
    """
    count = held_count(size, fraction)
    kept = size - count
    runs = min(round(math.sqrt(count)), kept + 1)
    lengths = count // runs + (np.arange(runs) < count % runs)
    draws = np.random.default_rng([seed, *b"holdout"])  # a stream of its own
    before = np.sort(draws.choice(kept + 1, runs, replace=False))  # kept images before each run
    return np.insert(np.zeros(kept, dtype=bool), np.repeat(before, lengths), True)


@DATASETS.register_module()
class Subset(Dataset):
    """Whole images of another data set, in its order. Which are held out is a function of ``seed`` and their number:
    ``held_out``.

    An image is transformed as it would be in the whole set: what is drawn for it depends on (seed, epoch, its place
    there).

    Args:
        dataset: the config of the whole set, without transforms.
        part: "kept" or "held out".
        holdout: the fraction that is held out, at least one image.
        transforms, seed: of the whole set.
    """

    def __init__(
        self,
        dataset: dict,
        part: str,
        holdout: float,
        transforms: Sequence[dict | Callable] = (),
        seed: int = 0,
    ):
        if part not in SIDES:
            raise UserError(f"Subset: part={part!r}; give 'kept' or 'held out'.")
        if isinstance(holdout, bool) or not isinstance(holdout, (int, float)) or not 0 < holdout < 1:
            raise UserError(f"holdout={holdout!r}: give the fraction of the training images to hold out, such as 0.1.")
        self.whole = build(DATASETS, dataset, transforms=transforms, seed=seed)
        size = len(self.whole)
        if size < 2:
            raise UserError(f"{self.whole.name} has one image of split {self.whole.split}: none can be held out.")
        self.indices = np.flatnonzero(held_out(size, holdout, seed) == (part == "held out")).tolist()
        self.name, self.classes, self.targets = self.whole.name, self.whole.classes, self.whole.targets
        self.split = f"{self.whole.split}, {part}"

    @property
    def scoring(self) -> dict:
        """As of the whole set, for these images alone; of sets of boxes."""
        known = self.whole.scoring
        return {**known, "image_ids": tuple(known["image_ids"][index] for index in self.indices)}

    @property
    def metainfo(self) -> dict:
        return self.whole.metainfo

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        index = range(len(self))[index]
        return replace(self.whole[epoch, self.indices[index]], index=index)

    def files_on_disk(self, index: int) -> list[Path]:
        return self.whole.files_on_disk(self.indices[index])

    def fingerprint(self) -> str:
        """SHA-256 over the fingerprint of the whole set and the places of these images in it."""
        return hashlib.sha256(f"{self.whole.fingerprint()} {self.indices}".encode()).hexdigest()
