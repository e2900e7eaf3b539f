"""Which images of a set are also in one to evaluate on: by COCO's numbers where both have them, else by their looks."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from siglip2_dense.data.boxes.coco import BoxDataset
from siglip2_dense.data.reading import WORKERS, opened
from siglip2_dense.files import atomic, cache_folder

BITS = 3  # of the 64 in which two pictures of one image may differ, for they were compressed anew
BANDS = 4  # of 16 bits: of four, at least one is equal where fewer than four bits differ
PAIRS_AT_ONCE = 2**22


def duplicates(images: BoxDataset, evaluation: BoxDataset) -> np.ndarray:
    """(n,) bool: which of the images are in the other set.

    Pictures are read where one of the sets does not know its images' numbers at COCO: once, then they are in the cache.
    """
    numbers = images.coco_numbers, evaluation.coco_numbers
    if all((known >= 0).any() for known in numbers):
        return np.isin(numbers[0], numbers[1][numbers[1] >= 0])
    return close(*(looks_of(dataset) for dataset in (images, evaluation)))


def looks_of(dataset: BoxDataset) -> np.ndarray:
    """(n,) uint64: what ``looks`` gives of each image. Of processes that start together one reads, the others wait."""
    path = cache_folder() / "looks" / f"{dataset.fingerprint()}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with ThreadPoolExecutor(WORKERS) as pool:
                found = pool.map(lambda index: looks(dataset.files(dataset.entries[index])[0]), range(len(dataset)))
                title = f"comparing {dataset.name} {dataset.split}"
                values = np.fromiter(tqdm(found, total=len(dataset), desc=title, disable=None), np.uint64, len(dataset))
            with atomic(path) as temporary, open(temporary, "wb") as stream:
                np.save(stream, values)
    return np.load(path)


def looks(path: str | os.PathLike | Path) -> int:
    """64 bits of what a picture looks like from afar: whether each of 8 x 8 places is darker than the one beside it, by
    more than the least that there is.

    Of 250 images of COCO, 249 differ in 3 bits or fewer from themselves at two thirds of their size and quality 60, and
    no two different ones in 8 or fewer. Source: the difference hash (Krawetz 2013).
    """
    with opened(path) as image:
        image.draft("L", (288, 256))  # a JPEG may be decoded at a part of its size, but not of less than this
        values = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(values[:, 1:] > values[:, :-1] + 1).tobytes(), "little")


def close(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) bool: which of a (n,) uint64 differ from one of b (m,) in at most BITS bits."""
    bands = partial(np.ndarray.view, dtype=np.uint16)
    found = np.zeros(len(a), dtype=bool)
    if not len(a) or not len(b):
        return found
    for band in range(BANDS):
        own, others = (bands(values).reshape(-1, BANDS)[:, band] for values in (a, b))
        order = np.argsort(others, kind="stable")
        low, high = (np.searchsorted(others[order], own, side) for side in ("left", "right"))
        step = max(1, PAIRS_AT_ONCE // max(int((high - low).max()), 1))
        for first in range(0, len(a), step):
            some = slice(first, first + step)
            counts = (high - low)[some]
            mine = np.repeat(np.arange(len(a))[some], counts)
            within = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
            theirs = order[np.repeat(low[some], counts) + within]
            differing = np.unpackbits((a[mine] ^ b[theirs])[:, None].view(np.uint8), axis=1).sum(1)
            found[mine[differing <= BITS]] = True
    return found
