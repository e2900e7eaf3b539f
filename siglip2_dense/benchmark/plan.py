"""What tools/plan.py estimates against the clock on this CPU, and what the SigLIP 2 paper's Table 2 row costs on paper.

Estimate and measurement are of the same work, by the repository's configs on generated sizes: a step of training
through the encoder or from features in memory, an image that is evaluated, a pass of the encoder. The figure is how
many times the one is the other, whichever is larger; the detail says which. The CPU's peak rates are measured at the
start; what part of them is reached is assumed, in ``engine/devices.py``. Nothing here has run on an H100: its hours
follow from NVIDIA's data sheet and the parts named beside them, for heads in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor

from siglip2_dense.benchmark.measure import figure, interleave
from siglip2_dense.contracts import IGNORE, Features, Sample, Size
from siglip2_dense.engine.configs import find_config
from siglip2_dense.engine.devices import DEVICES, Device, measured_cpu
from siglip2_dense.engine.memory import keep_freed_memory
from siglip2_dense.engine.optimizers import JointOptimWrapper, optimizers_of
from siglip2_dense.engine.plan import plan
from siglip2_dense.registry import MODELS, build

STEPS, IMAGES = 1000, 1000  # enough of them for what happens once to vanish in the mean


class Case(NamedTuple):
    """A config with another encoder and images of one size."""

    config: str
    encoder: str
    size: Size
    batch: int
    phases: tuple[str, ...]
    precision: str = "fp32"  # of the encoder


ADE20K = "probe_ade20k"
PHASES = ("step", "step from features", "evaluation", "evaluation from features")
CASES = (
    Case(ADE20K, "siglip2-base-16-512", (512, 512), 2, PHASES),
    Case(ADE20K, "siglip2-base-16-512", (512, 512), 2, ("pass",), "bf16"),
    Case(ADE20K, "siglip2-so400m-14-384", (512, 512), 1, ("pass",)),
    Case("probe_camvid", "efficientnet-lite0", (336, 448), 8, PHASES),
    Case(
        "probe_nyuv2_depth_dpt",
        "siglip2-base-16-512",
        (480, 640),
        1,
        ("step from features", "evaluation from features"),
    ),
)
QUICK = (
    Case(ADE20K, "siglip2-base-16-256", (256, 256), 2, PHASES),
    Case("probe_camvid", "efficientnet-lite0", (336, 448), 4, PHASES),
)
ROW = {  # the columns of Table 2, and images of training and test where the set's size is not published
    "ADE20k": ("probe_ade20k", None),
    "PASCAL": ("probe_pascal", None),
    "NYUv2 depth": ("probe_nyuv2_depth", None),
    "NYUv2 normals": ("probe_nyuv2_normals", None),
    "NAVI depth": ("probe_navi_depth", (2024, 555)),  # every fourth frame of NAVI 1.0, counted elsewhere
    "NAVI normals": ("probe_navi_normals", (2024, 555)),
}


def run(quick: bool) -> list[dict]:
    """Figures: estimate against measurement of each case and phase, and hours of the row."""
    keep_freed_memory()  # as training and evaluation do
    device = measured_cpu()
    figures = []
    for case in QUICK if quick else CASES:
        figures += compare(case, device, rounds=3)
    return figures + row("siglip2-so400m-14-384")


def config_of(case: Case) -> Config:
    """The case's config, on data that are never read."""
    config = Config.fromfile(find_config(case.config))
    config.model.encoder.update(name=case.encoder, weights="random", precision=case.precision)
    for parts in config.model.heads.values():
        if parts.task.type == "Segmentation":
            parts.task.classes = "ade20k" if case.config == ADE20K else [f"class {number}" for number in range(11)]
    for loader, split in ((config.train_dataloader, "train"), (config.val_dataloader, "val")):
        loader.dataset = dict(type="GeneratedScenes", split=split, length=IMAGES, size=case.size)
    if "canvas" in config.model:
        config.model.canvas = case.size
    config.train_dataloader.batch_size = case.batch
    config.train_cfg.update(max_iters=STEPS, val_interval=STEPS)
    return config


def estimates(config: Config, device: Device) -> dict[str, float]:
    """Seconds of each phase."""
    seconds = plan(config, device)["seconds"]
    straight, stored = seconds["straight"], seconds["stored"]
    return {
        "step": straight["training"] / STEPS,
        "step from features": stored["training"] / STEPS,
        "evaluation": straight["evaluation"] / IMAGES,
        "evaluation from features": stored["evaluation"] / IMAGES,
        "pass": stored["extraction"] / IMAGES,
    }


def work_of(config: Config, case: Case) -> dict[str, Callable[[], object]]:
    """The same phases, to be done."""
    probe = build(MODELS, config.model.to_dict())
    optimizers = JointOptimWrapper(**optimizers_of(probe))
    images = [torch.randint(0, 256, (3, *case.size), dtype=torch.uint8) for _ in range(case.batch)]
    samples = [_sample(case.size, index, probe) for index in range(case.batch)]
    positions = count()

    @cache
    def features() -> Features:
        return probe.features(images, probe.canvas)

    @cache
    def windows() -> Features:
        return _windows(probe, images[0])

    def step(inputs) -> None:
        probe.train().train_step({"inputs": inputs, "data_samples": samples}, optimizers)

    def evaluation(inputs) -> None:
        (found,) = probe.eval()([inputs], samples[:1], mode="predict")
        for name, task in probe.tasks.items():
            task.metric().update(found[name], getattr(samples[0], task.target), next(positions))

    return {
        "step": lambda: step(images),
        "step from features": lambda: step(features()),
        "evaluation": lambda: evaluation(images[0]),
        "evaluation from features": lambda: evaluation(windows()),
        "pass": lambda: probe.features(images, probe.canvas),
    }


def compare(case: Case, device: Device, rounds: int) -> list[dict]:
    """Figures of one case."""
    config = config_of(case)
    expected, work = estimates(config, device), work_of(config, case)
    seconds = interleave({phase: work[phase] for phase in case.phases}, rounds)
    figures = []
    for phase, found in seconds.items():
        # a pass is of one image, as extraction is counted by images
        measured = median(found) / (case.batch if phase == "pass" else 1)
        ratio = expected[phase] / measured
        head = next(iter(config.model.heads.values())).head.type
        name = f"{case.encoder} {case.precision}, {head}, {case.batch} x {case.size[0]} x {case.size[1]} px"
        figures.append(
            figure(f"plan against the clock, {phase}, {name}", max(ratio, 1 / ratio), 2,
                   detail=f"estimated / measured {ratio:.2f}: {expected[phase] * 1e3:.0f} ms, {measured * 1e3:.0f} ms")
        )  # fmt: skip
    return figures


def row(encoder: str) -> list[dict]:
    """Figures: hours of training and testing a head for every column, through the encoder and from stored features."""
    device, figures = DEVICES["h100"], []
    for precision in ("fp32", "bf16"):
        plans = {}
        for column, (name, images) in ROW.items():
            config = Config.fromfile(find_config(name))
            config.model.encoder.update(name=encoder, precision=precision)
            plans[column] = plan(config, device, images)
        assumed = " and ".join(
            f"{device.reached[kind]:.0%} of {device.operations[kind] / 1e12:g} TFLOP/s ({what})"
            for what, kind in (("encoder", precision), ("heads", "fp32"))
        )
        for way in ("straight", "stored"):
            hours = {column: found["seconds"][way]["total"] / 3600 for column, found in plans.items()}
            detail = ", ".join(f"{column} {value:.2g}" for column, value in hours.items())
            if way == "straight":
                wanted = max(found["images_per_second"][way] for found in plans.values())
                detail += f"; a loader of up to {wanted:.0f} images/s"
            else:
                size = sum(
                    found["bytes"]["stored_train"] + found["bytes"]["stored_windows"] for found in plans.values()
                )
                detail += f"; extraction included, one view, {size / 1e9:.0f} GB"
            name = f"hours on one H100, Table 2 row of {encoder}, {way}, encoder in {precision}"
            figures.append(figure(name, sum(hours.values()), detail=f"{detail}; assumed to reach {assumed}"))
    return figures


def _windows(probe, image: Tensor) -> Features:
    """Features of an image's windows, as a store gives them."""
    size = tuple(image.shape[1:])
    boxes = probe.windows(size) * (2 if probe.inference.get("flip") else 1)
    features = probe.features([image[:, top : top + h, left : left + w] for top, left, h, w in boxes])
    places = zip(features.geometry, boxes, strict=True)
    return replace(features, geometry=tuple(replace(at, resized=size, original=size, window=box) for at, box in places))


def _sample(size: Size, index: int, probe) -> Sample:
    """Targets of every kind; labels are blocks of 32 pixels."""
    classes = max(task.channels for task in probe.tasks.values())
    labels = torch.randint(IGNORE, classes, [-(-side // 32) for side in size])
    labels = labels.repeat_interleave(32, 0).repeat_interleave(32, 1)[: size[0], : size[1]].contiguous()
    return Sample(
        labels=labels,
        depth=torch.rand(1, *size) * 9 + 0.5,
        normals=F.normalize(torch.randn(3, *size), dim=0),
        original_size=size,
        index=index,
    )
