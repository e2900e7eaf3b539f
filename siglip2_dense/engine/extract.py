"""Features into a store: one pass of the encoder over a data set, in files that ranks share and a killed run keeps."""

from __future__ import annotations

import math
import shutil
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_rank, get_world_size, is_main_process
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from siglip2_dense import records
from siglip2_dense.contracts import EncoderFacts, Features, Sample, Size
from siglip2_dense.data.loading import TARGETS, worker_init
from siglip2_dense.data.subset import Subset
from siglip2_dense.encoders.naflex import grid_of
from siglip2_dense.errors import UserError
from siglip2_dense.models.probe import WINDOWS_PER_PASS
from siglip2_dense.store.folder import Store, create, find, size_text, sweep
from siglip2_dense.store.key import DTYPES, make_key
from siglip2_dense.store.loader import StoredImages, StoredLoader, several_sizes
from siglip2_dense.store.packing import pack_targets
from siglip2_dense.store.reader import Reader
from siglip2_dense.store.shard import ShardWriter, narrowed

SHARD_BYTES = 2**28  # extraction holds about three shards in memory
LOOKED_AT = 16  # images that tell how large a store will be
WAITING = 2  # batches that may wait to be written
DRAW_NOTHING = {"ResizeShortSide", "Resize", "Crop", "CenterCrop"}  # transforms that a seed does not change
NOT_IN_MAPS = {"name", "weights", "layers", "norm", "pooled", "compile", "trainable", "checkpointing"}


def settings(config: Config) -> dict | None:
    """What a config says of stored features: dir, views, dtype; none where they are computed as they are needed."""
    given = config.get("feature_store")
    if given is None:
        return None
    found = {"dir": given.get("dir"), "views": given.get("views", 1), "dtype": given.get("dtype", "fp16")}
    if not found["dir"]:
        raise UserError("feature_store says nowhere to keep features: give --features DIR, or feature_store.dir.")
    if isinstance(found["views"], bool) or not isinstance(found["views"], int) or found["views"] < 1:
        raise UserError(f"feature_store.views={found['views']!r}: give how many views of each image, 1 or more.")
    if found["dtype"] not in DTYPES:
        raise UserError(f"feature_store.dtype={found['dtype']!r}: give {' or '.join(map(repr, DTYPES))}.")
    return found


def training_loader(config: Config, probe, data) -> StoredLoader:
    """Endless batches of stored features, which are extracted first where they are missing.

    A part of a data set is served from the features of the whole, which serve other parts and the whole too.
    """
    targets = [task.target for task in probe.tasks.values()]
    views, loading, whole, images = settings(config)["views"], config.train_dataloader.to_dict(), data, None
    if isinstance(data, Subset):
        built, whole, images = loading["dataset"], data.whole, data.indices
        loading["dataset"] = {**built["dataset"], "transforms": built.get("transforms", [])}
    reader = Reader(ensure(config, probe, whole, loading), probe.taps, probe.pooled, targets, views)
    return StoredLoader(reader, data, loading["batch_size"], config.seed, get_rank(), get_world_size(), images)


def test_images(config: Config, probe, data, loading: dict) -> StoredImages:
    """This rank's images of a data set as stored windows, which are extracted first where they are missing."""
    store = ensure(config, probe, data, loading, windows=True)
    targets = [task.target for task in probe.tasks.values()]
    return StoredImages(Reader(store, probe.taps, probe.pooled, targets), data, get_rank(), get_world_size())


def ensure(
    config: Config, probe, data, loading: dict, windows: bool = False, part: tuple[int, int] | None = None
) -> Store:
    """The store of what the probe reads of a data set; what is missing in it is extracted, over all ranks.

    loading: batch_size, num_workers and dataset of the config. windows: those of the inference, for evaluation, else
    the views of training. part: (i, n) to do every n-th file from the i-th on and leave the others to other processes
    (a job array); the store is then not whole in the end. Raises UserError for an encoder that trains, for a store that
    does not fit on the disk, and for what the stored type cannot hold.
    """
    wanted = settings(config)
    folder, views = Path(wanted["dir"]), 1 if windows else wanted["views"]
    if probe.trains_encoder:
        raise UserError(
            f"model.encoder.trainable={probe.trainable!r}: features that change in training cannot be stored; leave "
            "out --features, or set trainable='none'."
        )
    key = key_of(config, probe, data, loading, windows)
    store = find(folder, key, views)
    held = [None if store is None else store.missing(views)]
    broadcast_object_list(held)  # what one rank writes another must not take for found
    if held != [[]]:
        bytes_per_image = _expected_bytes(probe, data, windows)
        store = store or create(folder, key, probe.facts, _images_per_shard(bytes_per_image))
        missing = held[0] or store.missing(views)
        _check_space(store, missing, bytes_per_image)
        dist.is_initialized() and dist.barrier()  # no rank may write before all have looked
        if is_main_process():
            sweep(folder)
        first, step = (part[0] - 1, part[1]) if part else (get_rank(), get_world_size())
        mine = [(view, number) for view, number in missing if (view * store.shards_per_view + number) % step == first]
        _extract(probe, data, loading, store, mine, windows)
        dist.is_initialized() and dist.barrier()
    if part is None and (store is None or store.missing(views)):
        raise UserError(
            f"{folder}: not all files are there though every process has written its own; give a folder that all "
            "machines see."
        )
    return store


def key_of(config: Config, probe, data, loading: dict, windows: bool) -> dict:
    """What the features that the probe reads of a data set depend on."""
    encoder = {key: value for key, value in config.model.encoder.to_dict().items() if key not in NOT_IN_MAPS}
    built = {"transforms": [], **_without_root(loading["dataset"])}
    draws = any(transform["type"] not in DRAW_NOTHING for transform in built["transforms"])
    return make_key(
        facts=probe.facts,
        encoder={**encoder, "precision": probe.encoder.precision},
        taps=probe.taps,
        pooled=probe.pooled,
        aligned=probe.aligned,
        dtype=settings(config)["dtype"],
        data={**records.describe_data(data), "settings": built},
        seed=config.seed if draws else None,
        canvas=None if windows else probe.canvas,
        windows=probe.inference if windows else None,
    )


def _without_root(settings: dict) -> dict:
    """A data set's settings wherever it lies, one within another too."""
    inner = {key: _without_root(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in inner.items() if key != "root"}


def row_bytes(facts: EncoderFacts, taps, pooled: bool, aligned: bool, size: Size) -> int:
    """What the features of one image or window of ``size`` pixels take in a store, in bytes."""
    if facts.sequence_length is None:
        padded = [-(-side // facts.multiple) * facts.multiple for side in size]
    else:
        padded = [side * facts.multiple for side in grid_of(size, facts.multiple, facts.sequence_length)]

    def cells(block: int) -> int:
        return math.prod(side // facts.strides[block] for side in padded)

    values = sum(facts.widths[tap.block] * (cells(tap.block) + len(facts.prefix)) for tap in taps)
    values += facts.pooled_width * pooled + (facts.aligned_width * cells(-1) if aligned else 0)
    return 2 * values


def _expected_bytes(probe, data, windows: bool) -> float:
    """Of an image in a store, on average: those of the maps follow from its size, those of its targets are looked at.

    Raises UserError for images of several sizes where one is needed.
    """
    chosen = sorted({number * len(data) // LOOKED_AT for number in range(LOOKED_AT)})
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


def _images_per_shard(bytes_per_image: float) -> int:
    return max(int(SHARD_BYTES / bytes_per_image) // 8, 1) * 8


def _check_space(store: Store, missing: Sequence, bytes_per_image: float) -> None:
    images = sum(len(store.positions(number)) for _, number in missing)
    needed, free = images * bytes_per_image, shutil.disk_usage(store.path).free
    what = f"features of {images} images of {store.key['data']['name']} {store.key['data']['split']}"
    if needed > free:
        raise UserError(
            f"{what} need about {size_text(needed)} in {store.path.parent}, which has {size_text(free)} free; free "
            "some space, give another folder, or store fewer layers or views."
        )
    if is_main_process():
        files = f"{len(missing)} file{'s' * (len(missing) > 1)}"
        print(f"{what}: about {size_text(needed)} in {files} of {store.path} ({size_text(free)} free)", flush=True)


def _check_sizes(probe, sizes: Sequence[Size]) -> None:
    if probe.canvas is None and probe.facts.sequence_length is None and len(set(sizes)) > 1:
        raise UserError(several_sizes(sorted(set(sizes))))


@torch.no_grad()
def _extract(probe, data, loading: dict, store: Store, shards: Sequence[tuple[int, int]], windows: bool) -> None:
    """Write these shards. The encoder and the writing, in a thread, do not wait for each other."""
    order, size = store.order(), loading.get("batch_size", 1)
    ends, batches = [], []
    for view, number in shards:
        positions = store.positions(number)
        for start in range(0, len(positions), size):
            batches.append([(view, int(order[position])) for position in positions[start : start + size]])
            ends.append((view, number) if start + size >= len(positions) else None)
    loader = DataLoader(
        data,
        batch_sampler=batches,
        num_workers=min(loading.get("num_workers", 0), len(batches)),
        collate_fn=_collate,
        worker_init_fn=worker_init,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    probe.to(get_device()).eval()
    keep = partial(_keep, store, ShardWriter())
    encode = _encode_windows if windows else _encode_images
    quiet = None if sys.stderr.isatty() else 30  # seconds between lines of progress in a log file
    label = f"extracting {store.key['data']['split']}"
    progress = dict(desc=label, unit="image", disable=not is_main_process(), leave=False, mininterval=quiet or 0.5)
    waiting: deque = deque()
    with ThreadPoolExecutor(1) as thread, tqdm(total=sum(map(len, batches)), **progress) as bar:
        for end, (images, samples, targets) in zip(ends, loader, strict=True):
            images = [image.to(get_device(), non_blocking=True) for image in images]
            waiting.append(thread.submit(keep, encode(probe, images, samples), samples, targets, end))
            if len(waiting) > WAITING:
                waiting.popleft().result()
            bar.update(len(images))
        for written in waiting:
            written.result()


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
    found = []
    for image, sample in zip(images, samples, strict=True):
        cuts, places = map(list, zip(*probe.views(image, sample.original_size), strict=True))
        if probe.inference.get("flip"):
            cuts, places = cuts + [cut.flip(-1) for cut in cuts], places * 2
        passes = [cuts[start : start + WINDOWS_PER_PASS] for start in range(0, len(cuts), WINDOWS_PER_PASS)]
        features = Features.cat([probe.features(cuts) for cuts in passes])
        geometry = tuple(
            replace(seen, resized=place.resized, original=place.original, window=place.window)
            for seen, place in zip(features.geometry, places, strict=True)
        )
        found.append((replace(features, geometry=geometry), len(cuts)))
    return found


def _keep(store: Store, writer: ShardWriter, parts, samples, targets, end: tuple[int, int] | None) -> None:
    """Add a batch to the shard, and write that with its last one."""
    known = iter(zip(samples, targets, strict=True))
    dtype = DTYPES[store.key["dtype"]]
    for features, rows in parts:
        own = [next(known) for _ in range(len(features) // rows)]
        features = narrowed(features, dtype, [sample for sample, _ in own for _ in range(rows)])
        for number, (sample, packed) in enumerate(own):
            writer.add(features[number * rows : (number + 1) * rows], sample, packed)
    if end is not None:
        store.write(*end, writer)


def _size(image: Tensor) -> Size:
    height, width = image.shape[-2:]
    return height, width
