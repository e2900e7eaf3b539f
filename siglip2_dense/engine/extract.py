"""What a config reads from stored features: which stores these are, and what is missing in them extracted first."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_rank, get_world_size, is_main_process

from siglip2_dense import records
from siglip2_dense.data.subset import Subset
from siglip2_dense.engine.encoding import expected_bytes, made_with, write_shards
from siglip2_dense.errors import UserError
from siglip2_dense.files import free_bytes, size_text
from siglip2_dense.registry import TRANSFORMS, check_arguments
from siglip2_dense.store.folder import create, find, nearest, planned, remove_leftovers
from siglip2_dense.store.key import DTYPES, make_key
from siglip2_dense.store.loader import StoredImages, StoredLoader
from siglip2_dense.store.reader import Reader
from siglip2_dense.store.store import NOT_EXTRACTED, Store

SHARD_BYTES = 2**28  # extraction holds about three shards in memory
NAMED = 3  # of the files that cannot be used
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
    """Endless batches of stored features, which are extracted first where they are missing."""
    targets, loading = [task.target for task in probe.tasks.values()], config.train_dataloader.to_dict()
    reader = Reader(ensure(config, probe, data, loading), probe.taps, probe.pooled, targets, settings(config)["views"])
    images = data.indices if isinstance(data, Subset) else None
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
    the views of training; a part of a data set is trained from the features of the whole, which serve other parts too.
    part: (i, n) to do every n-th file from the i-th on and leave the others to other processes (a job array); the store
    is then not whole in the end.

    Raises UserError for an encoder that trains, for a store that does not fit on the disk, for what the stored type
    cannot hold, and for views that would all be the same.
    """
    if isinstance(data, Subset) and not windows:
        built, data = loading["dataset"], data.whole
        loading = {**loading, "dataset": {**built["dataset"], "transforms": built.get("transforms", [])}}
    wanted = settings(config)
    folder, views = Path(wanted["dir"]), 1 if windows else wanted["views"]
    if probe.trains_encoder:
        raise UserError(
            f"model.encoder.trainable={probe.trainable!r}: features that change in training cannot be stored; leave "
            "out --features, or set trainable='none'."
        )
    key = key_of(config, probe, data, loading, windows)
    if views > 1 and key["seed"] is None:
        raise UserError(
            f"feature_store.views={views}: the transforms of training draw nothing, so that all views of an image are "
            "the same; leave views out."
        )
    held = [_held(folder, key, views, data) if is_main_process() else None]
    broadcast_object_list(held)  # what one rank writes another must not take for found
    store, missing = held[0]
    if store is None or missing:
        bytes_per_image = expected_bytes(probe, data, windows)
        store = store or planned(folder, key, probe.facts, _images_per_shard(bytes_per_image))
        _check_space(store, missing or store.shards(views), bytes_per_image)
        dist.is_initialized() and dist.barrier()  # no rank may write before all have looked
        store = create(store)
        missing = missing or store.shards(views)  # the same for all ranks
        if part is None:
            mine = missing[get_rank() :: get_world_size()]
        else:  # jobs that may look at different times: by the file's own number, whatever is missing
            mine = [(v, n) for v, n in missing if (v * store.shards_per_view + n) % part[1] == part[0] - 1]
        write_shards(probe, data, loading, store, mine, windows)
        dist.is_initialized() and dist.barrier()
    if part is None and store.missing(views):
        raise UserError(
            f"{folder}: not all files are there though every process has written its own; give a folder that all "
            "machines see."
        )
    return store


def key_of(config: Config, probe, data, loading: dict, windows: bool) -> dict:
    """What the features that the probe reads of a data set depend on."""
    encoder = {key: value for key, value in config.model.encoder.to_dict().items() if key not in NOT_IN_MAPS}
    built = built_with(data, loading["dataset"])
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
        canvas=None if windows else probe.placement,
        windows=probe.inference if windows else None,
    )


def built_with(data, given: dict) -> dict:
    """What a data set was built with, wherever it lies, with the defaults, which may be others in another version."""
    found = {key: value for key, value in _with_defaults(type(data), given).items() if key != "root"}
    if isinstance(data, Subset):
        found["dataset"] = built_with(data.whole, found["dataset"])
    transforms = found.get("transforms", ())
    found["transforms"] = [_with_defaults(check_arguments(TRANSFORMS, one), one) for one in transforms]
    return found


def _with_defaults(cls: type, given: dict) -> dict:
    parameters = inspect.signature(cls).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty and one.name != "seed"}
    return {**defaults, **given}


def _held(folder: Path, key: dict, views: int, data) -> tuple[Store | None, list[tuple[int, int]]]:
    """The store that serves, if there is one, and what is missing in it; what is there and cannot be used is named."""
    remove_leftovers(folder)
    store = find(folder, key, views, data.files_on_disk)
    if store is None:
        if told := nearest(folder, key, views, data.files_on_disk):
            print(f"no features that are stored already serve: {told}", flush=True)
        return None, []
    store.use()
    problems = store.problems(views, data.files_on_disk)
    broken = [shard for shard, problem in problems.items() if problem != NOT_EXTRACTED]
    for shard in broken:
        store.forget(*shard)
    for shard in broken[:NAMED]:
        print(f"{store.file(*shard)} is extracted again: {problems[shard]}", flush=True)
    if len(broken) > NAMED:
        print(f"and {len(broken) - NAMED} more files of {store.path}", flush=True)
    here = made_with()
    for name, found in store.versions(views).items():
        if others := found - {here[name]}:
            print(
                f"features in {store.path} were made with {name} {' and '.join(sorted(others))}, here is {here[name]}; "
                f"siglip2-dense features prune {folder} {store.path.name} to have them made anew",
                flush=True,
            )
    return store, list(problems)


def _images_per_shard(bytes_per_image: float) -> int:
    return max(int(SHARD_BYTES / bytes_per_image) // 8, 1) * 8


def _check_space(store: Store, missing: Sequence, bytes_per_image: float) -> None:
    images = sum(len(store.positions(number)) for _, number in missing)
    needed, free = images * bytes_per_image, free_bytes(store.path)
    what = f"features of {images} images of {store.key['data']['name']} {store.key['data']['split']}"
    if needed > free:
        raise UserError(
            f"{what} need about {size_text(needed)} in {store.path.parent}, which has {size_text(free)} free; free "
            "some space, give another folder, or store fewer layers or views."
        )
    if is_main_process():
        files = f"{len(missing)} file{'s' * (len(missing) > 1)}"
        print(f"{what}: about {size_text(needed)} in {files} of {store.path} ({size_text(free)} free)", flush=True)
