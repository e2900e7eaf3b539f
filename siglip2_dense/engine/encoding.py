"""The encoder's pass over a data set, into the shards of a store."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from mmengine.device import get_device
from torch import Tensor
from torch.utils.data import DataLoader

from siglip2_dense import records
from siglip2_dense.contracts import TARGETS, EncoderFacts, Features, Sample, Size
from siglip2_dense.data.loading import worker_init
from siglip2_dense.encoders.facts import padded
from siglip2_dense.engine.progress import Progress
from siglip2_dense.errors import UserError
from siglip2_dense.store.key import DTYPES
from siglip2_dense.store.loader import several_sizes
from siglip2_dense.store.origins import Origin
from siglip2_dense.store.packing import pack_targets
from siglip2_dense.store.shard import ShardWriter, narrowed
from siglip2_dense.store.store import Store

MEASURED = 16  # images that tell how large a store will be
LIBRARIES = (  # that make features what they are
    "siglip2_dense", "torch", "torchvision", "timm", "numpy", "pillow", "opencv-python", "onedl-mmcv",
    "onedl-mmsegmentation",
)  # fmt: skip
WAITING = 2  # batches that may wait to be written


def row_bytes(facts: EncoderFacts, taps, pooled: bool, aligned: bool, size: Size) -> int:
    """What the features of one image or window of ``size`` pixels take in a store, in bytes."""
    sides = padded(facts, size)

    def cells(block: int) -> int:
        return math.prod(side // facts.strides[block] for side in sides)

    values = sum(facts.widths[tap.block] * (cells(tap.block) + len(facts.prefix)) for tap in taps)
    values += facts.pooled_width * pooled + (facts.aligned_width * cells(-1) if aligned else 0)
    return 2 * values


def expected_bytes(probe, data, windows: bool) -> float:
    """Of an image in a store, on average: those of the maps follow from its size, those of its targets are looked at.

    Raises UserError for images of several sizes where one is needed.
    """
    chosen = sorted({number * len(data) // MEASURED for number in range(MEASURED)})
    samples = [data[(0, index)] for index in chosen]
    if not windows:
        _check_sizes(probe, [_size(sample.image) for sample in samples])
    total = 0
    for sample in samples:
        sizes = _rows(probe, sample.image) if windows else [probe.canvas or _size(sample.image)]
        for size in map(probe.encoded, sizes):
            total += row_bytes(probe.facts, probe.taps, probe.pooled, probe.aligned is not None, size)
        total += sum(map(len, pack_targets(sample).values()))
    return total / len(samples)


def _rows(probe, image: Tensor) -> list[Size]:
    """The sizes of the windows of an image, with those of its mirror image where they are wanted."""
    sizes = [_size(pixels) for pixels, _ in probe.views(image, _size(image))]
    return sizes * (2 if probe.inference.get("flip") else 1)


def _check_sizes(probe, sizes: Sequence[Size]) -> None:
    if probe.placement is None and probe.facts.sequence_length is None and len(set(sizes)) > 1:
        raise UserError(several_sizes(sorted(set(sizes))))


def own_order(shards: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Mixed, each time otherwise: runs that were started together would write the same files to the end."""
    return [shards[number] for number in np.random.default_rng().permutation(len(shards))]


class _File(NamedTuple):
    """A shard under way."""

    view: int
    number: int
    content: ShardWriter
    origins: list[Origin]


def _batches(
    store: Store, data, shards: Sequence[tuple[int, int]], size: int, places: deque, progress: Progress
) -> Iterator[list[tuple[int, int]]]:
    """What a loader reads, (view, index) of a batch's images; ``places`` gets its file, and whether that ends there.

    A file that another run has written meanwhile is passed over.
    """
    for view, number in own_order(shards):
        if not store.problem(view, number):
            progress.skip(len(store.positions(number)))
            continue
        images = store.held(number)
        origins = [Origin.of(path) for index in images for path in data.files_on_disk(index)]
        file = _File(view, number, ShardWriter(), origins)
        for start in range(0, len(images), size):
            places.append((file, start + size >= len(images)))
            yield [(view, index) for index in images[start : start + size]]


def made_with() -> dict[str, str]:
    """The versions of what makes features."""
    known = records.versions(LIBRARIES)
    return {name: known[name] for name in LIBRARIES}


@torch.no_grad()
def write_shards(probe, data, loading: dict, store: Store, shards: Sequence[tuple[int, int]], windows: bool) -> None:
    """Write these shards. The encoder and the writing, in a thread, do not wait for each other."""
    total, size = sum(len(store.positions(number)) for _, number in shards), loading.get("batch_size", 1)
    places: deque = deque()
    progress = Progress(f"extracting {store.key['data']['split']}", total)
    loader = DataLoader(
        data,
        batch_sampler=_batches(store, data, shards, size, places, progress),
        num_workers=min(loading.get("num_workers", 0), total),
        collate_fn=_collate,
        worker_init_fn=worker_init,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    probe.to(get_device()).eval()
    encode = _encode_windows if windows else _encode_images
    thread, waiting = ThreadPoolExecutor(1), deque()
    try:
        with progress:
            for images, samples, targets in loader:
                images, place = [image.to(get_device(), non_blocking=True) for image in images], places.popleft()
                waiting.append(thread.submit(_keep, store, *place, encode(probe, images, samples), samples, targets))
                if len(waiting) > WAITING:
                    waiting.popleft().result()
                progress.update(len(images))
            for written in waiting:
                written.result()
    finally:
        thread.shutdown(cancel_futures=True)  # after an error nothing that waits is worth writing


def _collate(samples: Sequence[Sample]) -> tuple[list[Tensor], list[Sample], list[dict[str, bytes]]]:
    """Images, what is known of them, and their targets packed: a worker process has the time for that."""
    bare = [replace(sample, **dict.fromkeys(("image", *TARGETS))) for sample in samples]
    return [sample.image for sample in samples], bare, [pack_targets(sample) for sample in samples]


def _encode_images(probe, images: Sequence[Tensor], samples: Sequence[Sample]) -> list[tuple[Features, int]]:
    """Features of several images, with the number of rows that each has of them."""
    _check_sizes(probe, [_size(image) for image in images])
    return [(probe.features(images, probe.canvas), 1)]


def _encode_windows(probe, images: Sequence[Tensor], samples: Sequence[Sample]) -> list[tuple[Features, int]]:
    """Of each image its windows, and behind them those windows in a mirror where the inference has flip."""
    rows = [([], []) for _ in images]  # straight, mirrored
    for numbers, mirrored, features in probe.window_features(images, samples):
        for row, number in enumerate(numbers):
            rows[number][mirrored].append(features[row : row + 1])
    return [(Features.cat(straight + mirrored), len(straight + mirrored)) for straight, mirrored in rows]


def _keep(store: Store, file: _File, ends: bool, parts, samples, targets) -> None:
    """Add a batch to its file, and write that with its last one."""
    known = iter(zip(samples, targets, strict=True))
    dtype = DTYPES[store.key["dtype"]]
    for features, rows in parts:
        own = [next(known) for _ in range(len(features) // rows)]
        features = narrowed(features, dtype, [sample for sample, _ in own for _ in range(rows)])
        for number, (sample, packed) in enumerate(own):
            file.content.add(features[number * rows : (number + 1) * rows], sample, packed)
    if ends:
        store.write(*file, made_with())


def _size(image: Tensor) -> Size:
    height, width = image.shape[-2:]
    return height, width
