"""What a run will cost, before it: operations, bytes and time, straight through the encoder and from stored features.

Operations and bytes are counted from shapes. Times are these over what a device is assumed to reach (``devices.py``),
and so no more than a guide; decoding and augmenting images is not in them, and ``images_per_second`` says what a loader
would have to give.
"""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from siglip2_dense.contracts import Size
from siglip2_dense.data.subset import held_count
from siglip2_dense.encoders.facts import padded
from siglip2_dense.encoders.frozen import PRECISIONS
from siglip2_dense.engine.configs import check_keys, check_trains
from siglip2_dense.engine.devices import BESIDE, Device, Rates, Work
from siglip2_dense.engine.encoding import row_bytes
from siglip2_dense.engine.extract import settings as stored_settings
from siglip2_dense.engine.flops import (
    BATCH,
    Bare,
    HeadCost,
    bare_encoder,
    blank_features,
    encoder_cost,
    head_cost,
)
from siglip2_dense.engine.grid import has_several, holdout, members
from siglip2_dense.engine.plan_data import Images, images_of
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS, build, check_arguments


class Schedule(NamedTuple):
    """How often that is done; a number of images may be unknown."""

    steps: int
    batch: int
    views: int  # of each image in a store
    evaluations: int  # of the validation images
    whole: int | None  # images of the training set, which a store holds,
    trained: int | None  # those that are trained on,
    held: int | None  # and those that settings are chosen by
    tested: int | None  # images over all evaluations
    windows: int | None  # images whose windows a store holds


def plan(config: Config, device: Device, images: tuple[int, int] | None = None) -> dict:
    """The costs as plain data.

    images: of training and of validation, where they are not to be looked for.
    Raises UserError for a config that does not train heads on a frozen encoder.
    """
    check_keys(config)
    check_trains(config)
    if images and min(images) < 1:
        raise UserError(
            f"--images {images[0]} {images[1]}: give how many images of training and of validation, from 1."
        )
    given, store = images or (None, None), config.get("feature_store") or {}
    train = images_of(config.train_dataloader.dataset.to_dict(), config.seed, given[0])
    val = images_of(config.val_dataloader.dataset.to_dict(), config.seed, given[1])
    views = stored_settings({"feature_store": {"dir": ".", **store}})["views"]
    encoder, probe = _bare(config, train)
    run = _schedule(config, views, train.count, val.count)
    facts, taps, pooled = encoder.facts, probe.taps, probe.pooled
    kin, precision = _kin(probe.heads), config.model.encoder.get("precision", "fp32")
    number = 4 if precision == "fp32" else 2  # bytes

    @cache
    def cost(names: tuple[str, ...], size: Size) -> HeadCost:
        return head_cost([probe.heads[name] for name in names], blank_features(facts, taps, pooled, size, BATCH))

    @cache
    def work(size: Size) -> Work:
        costs = [cost(names, size) for names in kin]
        stored, whole = row_bytes(facts, taps, pooled, False, size), encoder_cost(encoder, size, taps, pooled)
        return Work(
            encoder=whole.operations,
            through=number * whole.moved,
            heads=sum(cost.forward for cost in costs),
            training=sum(cost.training for cost in costs),
            moved=2 * stored + sum(cost.kept for cost in costs),
            scores=sum(_scores(task) * math.prod(size) for task in probe.tasks.values()),
            losses=sum(_scores(task) * _pixels_of_loss(task, size) for task in probe.tasks.values()),
            stored=stored,
        )

    canvas = probe.canvas or tuple(max(size[axis] for size in train.sizes) for axis in (0, 1))
    flips = 2 if probe.inference.get("flip") else 1
    windows = [[box[2:] for box in probe.windows(size)] * flips for size in val.sizes]
    once, tested = work(canvas), Work.mean(Work.sum(map(work, sizes)) for sizes in windows)
    whole, parameters = encoder_cost(encoder, canvas, taps, pooled), sum(p.numel() for p in probe.parameters())
    raw = sum(cost(names, canvas).raw for names in kin)  # held with a gradient of the same size
    rates = Rates(device, precision, probe.precision, parameters)
    return {
        "encoder": {
            "name": facts.name,
            "parameters": facts.parameters,
            "blocks": facts.num_blocks,
            "precision": precision,
            "pixels": padded(facts, canvas),
            "operations": whole.parts,
        },
        "heads": {
            ", ".join(names): {
                "parameters": sum(p.numel() for name in names for p in probe.heads[name].parameters()),
                "precision": probe.precision,
                **cost(names, canvas)._asdict(),
            }
            for names in kin
        },
        "data": {
            "train": _described(train),
            "val": {**_described(val), "passes": mean(map(len, windows))},
        },
        "schedule": {
            "steps": run.steps,
            "images_per_step": run.batch,
            "epochs": run.steps * run.batch / run.trained if run.trained else None,
            "evaluations": run.evaluations,
            "images_trained": run.trained,
            "images_held_out": run.held,
            "images_tested": run.tested,
            "views": run.views,
        },
        "bytes": {
            "weights": 4 * (facts.parameters + parameters),
            "gradients_and_moments": 12 * parameters,
            "activations": run.batch * (number * whole.live + once.moved + 2 * raw),
            "stored_image": once.stored,
            "stored_train": _times(run.whole, run.views * once.stored),
            "stored_windows": _times(run.windows, tested.stored),
            "read_each_epoch": _times(run.trained, once.stored),
            "free": _free(store.get("dir")),
        },
        "device": asdict(device),
        **_timed(run, rates, once, tested),
    }


def _schedule(config: Config, views: int, train: int | None, val: int | None) -> Schedule:
    """Heads of a sweep are scored when all are trained: on the held-out images, then once on those of validation."""
    steps, fraction = config.train_cfg.max_iters, holdout(config)
    evaluations = 1 if has_several(config) else -(-steps // config.train_cfg.val_interval)
    held = None if train is None else 0 if fraction is None else held_count(train, fraction)
    return Schedule(
        steps=steps,
        batch=config.train_dataloader.batch_size,
        views=views,
        evaluations=evaluations,
        whole=train,
        trained=None if train is None else train - held,
        held=held,
        tested=None if None in (val, held) else val * evaluations + held,
        windows=None if None in (val, held) else val + held,
    )


def _timed(run: Schedule, rates: Rates, once: Work, tested: Work) -> dict:
    """Seconds of the phases and images a second, straight and from a store; once: of an image of training."""

    def phases(from_images: bool) -> dict:
        return {
            "training": run.steps * rates.step(run.batch, once, from_images),
            "evaluation": _times(run.tested, rates.test(tested, from_images)),
        }

    live, stored, disk = phases(True), phases(False), rates.device.disk
    train, windows = _times(run.trained, run.views * once.stored), _times(run.windows, tested.stored)
    kept = None not in (train, windows) and train + windows <= rates.device.keeps
    read = train if kept else run.steps * run.batch * once.stored  # in all of training
    read_windows = windows if kept else _times(run.tested, tested.stored)
    limited = read / disk > stored["training"]
    stored["training"] = max(stored["training"], read / disk)
    if read_windows is not None:
        stored["evaluation"] = max(stored["evaluation"], read_windows / disk)
    extraction = {
        "extraction": _times(run.whole, run.views * rates.extract(once)),
        "extraction_of_windows": _times(run.windows, rates.extract(tested)),
    }
    images = run.steps * run.batch
    return {
        "seconds": {"straight": _summed(live), "stored": _summed({**extraction, **stored})},
        "images_per_second": {
            "straight": images / live["training"],
            "extraction": 1 / rates.extract(once),
            "stored": images / stored["training"],
        },
        "disk_limits_stored": limited,
    }


def _bare(config: Config, data: Images) -> tuple[Bare, nn.Module]:
    """The encoder and the probe of a config without values. Raises UserError where the encoder trains too."""
    model = config.model.to_dict()
    settings = model.pop("encoder", None)
    if not settings or settings.get("trainable", "none") != "none":
        raise UserError("the plan is of heads on a frozen encoder: name one, model.encoder, without trainable.")
    check_arguments(MODELS, settings)
    if settings.get("precision", "fp32") not in PRECISIONS:
        raise UserError(f"precision={settings['precision']!r}: give one of {', '.join(PRECISIONS)}.")
    if has_several(config):
        model["heads"] = {member.name: member.parts for member in members(config)}
    for name, parts in model["heads"].items():
        task = parts.get("task", {})
        if task.get("type") != "Segmentation" or "classes" in task:
            continue
        if not data.classes:
            place, where = f"model.heads.{name.partition('/')[0]}.task.classes", config.train_dataloader.dataset
            raise UserError(
                f"{place}: only the data say them, and {where.get('root', data.name)} is not there; give the names, "
                f"{place}=[…], or get the data."
            )
        task["classes"] = list(data.classes)
    if model["type"] != "DenseProbe":
        raise UserError(f"the plan is of heads that read an encoder's own maps; it knows nothing of {model['type']}.")
    encoder = bare_encoder(settings)
    with torch.device("meta"):
        return encoder, build(MODELS, model, facts=encoder.facts)


def _kin(heads: nn.ModuleDict) -> list[tuple[str, ...]]:
    """The names of heads that are computed together."""
    found = defaultdict(list)
    for name, head in heads.items():
        found[getattr(head, "kin", name)].append(name)
    return [tuple(names) for names in found.values()]


def _scores(task) -> int:
    """Of a pixel: the channels that are brought to the size of the image, and what is beside them."""
    return BESIDE + (task.channels if task.target == "labels" else min(task.channels, 4))


def _pixels_of_loss(task, size: Size) -> int:
    sampled = task.samples if getattr(task, "sampled", False) else math.inf
    return min(math.prod(size), sampled)


def _described(images: Images) -> dict:
    return {
        "name": images.name,
        "split": images.split,
        "images": images.count,
        "counted": images.counted,
        "sizes": sorted(set(images.sizes)),
        "typical_sizes": not images.measured,
    }


def _free(folder: str | None) -> int | None:
    """Bytes free where a store is to be, whether the folder is there yet or not."""
    if folder is None:
        return None
    path = Path(folder).absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.is_dir())).free


def _times(count: int | None, each: float) -> float | None:
    return None if count is None else count * each


def _summed(parts: dict[str, float | None]) -> dict[str, float | None]:
    """The parts and their total; unknown with any of them."""
    return {**parts, "total": None if None in parts.values() else sum(parts.values())}
