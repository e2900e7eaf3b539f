"""What the encoder's wrapper adds to the bare timm model, what a step of a probe costs, and how long a run starts up.

A pass of the whole network takes hundreds of milliseconds and varies by some percent, so that what is added cannot be
seen in it. It is measured with the blocks replaced by identities (of convolutional networks: with the whole network
replaced by its remembered maps), and set in relation to the whole pass; the ratio of whole passes stands beside it with
its interval. Of each family the member nearest to a ViT-B is measured, at its own resolution. NaFlex encoders resize
images themselves and cut them into patches; that is told apart, and the bare model gets the patches.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from siglip2_dense.benchmark.measure import ROOT, figure, interleave, milliseconds
from siglip2_dense.contracts import Sample
from siglip2_dense.encoders import FrozenEncoder, naflex
from siglip2_dense.encoders.catalogue import Entry, catalogue
from siglip2_dense.engine.configs import find_config
from siglip2_dense.registry import MODELS, build

NAME = "siglip2-base-16-256"
BATCH = 2
MOST_PARAMETERS = 1e9
LONG_PASS = 0.05  # seconds; above it the added time is set in relation to the pass


def run(quick: bool, all_families: bool = False) -> list[dict]:
    """Figures: added time in parts of a pass, paired ratios at the native size and at 512 px, steps, start-up."""
    figures = _start_up()
    for entry in _representatives() if all_families else ():
        figures += _family(entry, rounds=3 if quick else 9)
    for size in (256,) if quick else (256, 512):
        encoder = FrozenEncoder(NAME, weights="random")
        images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
        pixels, _ = encoder._pixels(images, None)
        sides = {
            "wrapper": lambda encoder=encoder, images=images: encoder.features(images),
            "timm": lambda encoder=encoder, pixels=pixels: _bare(encoder.tower, pixels),
        }
        whole = interleave(sides, rounds=5 if quick else 15)
        with _emptied(encoder.tower):
            empty = interleave(sides, rounds=51, warmup=5)
        added = median(a - b for a, b in zip(empty["wrapper"], empty["timm"], strict=True))
        name = f"{NAME}, {size} px, batch {BATCH}"
        figures.append(
            figure(f"added time / pass, {name}", added / median(whole["timm"]), 0.01 if size == 256 else None,
                   detail=f"blocks replaced by identities: {milliseconds(empty)}")
        )  # fmt: skip
        ratios = [a / b for a, b in zip(whole["wrapper"], whole["timm"], strict=True)]
        low, high = _interval(ratios)
        figures.append(
            figure(f"wrapper / timm, whole pass, {name}", median(ratios),
                   detail=f"95 % of the median {low:.3f} to {high:.3f}; {milliseconds(whole)}")
        )  # fmt: skip
    for name in () if quick else ("siglip2-base-16-256", "siglip2-so400m-14-384"):
        figures += _steps(name)
    return figures


def _representatives() -> list[Entry]:
    """Of each family the member nearest to a ViT-B, by its parameters; of families of several poolings one of each."""

    def distance(entry: Entry) -> float:
        return abs(math.log(entry.parameters / 86e6))

    found: dict[tuple[str, str], Entry] = {}
    for entry in sorted(catalogue().values(), key=distance):
        found.setdefault((entry.family, entry.pooled), entry)
    return [entry for entry in found.values() if entry.parameters < MOST_PARAMETERS]


def _family(entry: Entry, rounds: int) -> list[dict]:
    """Added time of one encoder at its own resolution."""
    encoder = FrozenEncoder(entry.name, weights="random")
    tower, size = encoder.tower, entry.resolution
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
    detail, name = "", f"{entry.name}, {size} px, batch {BATCH}"
    packed = None
    if encoder.facts.sequence_length:
        cut = (images, encoder.patch_size, encoder.facts.sequence_length, encoder.mean, encoder.std)
        packed = naflex.pack(*cut)
        bare = {"patches": packed.patches, "patch_coord": packed.coordinates}
        packing = milliseconds(interleave({"pack": lambda: naflex.pack(*cut)}, rounds=9))
        detail = f"; resizing and cutting, which the bare model does not do: {packing}"
    else:
        bare, _ = encoder._pixels(images, None)
    sides = {"wrapper": lambda: encoder.features(images), "timm": lambda: _bare(tower, bare)}
    whole = interleave(sides, rounds)
    if hasattr(tower, "blocks") and hasattr(tower, "num_prefix_tokens"):
        with _emptied(tower), patch.object(naflex, "pack", lambda *_: packed):
            empty = interleave(sides, rounds=31, warmup=3)
        added = median(a - b for a, b in zip(empty["wrapper"], empty["timm"], strict=True))
    else:
        maps = encoder._intermediates(bare, indices=[encoder.num_blocks - 1], intermediates_only=True)
        with patch.object(encoder, "_intermediates", lambda *_, **__: maps):
            empty = interleave({"wrapper": sides["wrapper"]}, rounds=31, warmup=3)
        added = median(empty["wrapper"])
    seconds = median(whole["timm"])
    detail = f"without the network: {milliseconds(empty)}; whole pass: {milliseconds(whole)}{detail}"
    if seconds > LONG_PASS:
        return [figure(f"added time / pass, {name}", added / seconds, 0.01, detail=detail)]
    return [figure(f"added ms, {name}", added * 1e3, 0.3, detail=detail)]


class _Nothing(nn.Module):
    """A block that gives back its tokens, whatever comes beside them."""

    def forward(self, x, *_, **__):
        return x


@contextmanager
def _emptied(tower: nn.Module) -> Iterator[None]:
    """The tower with blocks that do nothing."""
    blocks, nothing = tower.blocks, [_Nothing() for _ in tower.blocks]
    tower.blocks = nn.Sequential(*nothing) if isinstance(blocks, nn.Sequential) else nn.ModuleList(nothing)
    try:
        yield
    finally:
        tower.blocks = blocks


def _start_up() -> list[dict]:
    """Seconds from the command to the first step of training, and of the libraries' own imports therein."""
    until_step = (
        "import sys, os, time\n"
        "from siglip2_dense.cli.common import run\n"
        "from siglip2_dense.cli.train import main\n"
        "import siglip2_dense.engine.train as t\n"
        "def first(*_, **__): print('first step', flush=True); os._exit(0)\n"
        "t.KeepHeads.after_train_iter = first\n"
        "sys.exit(run(main))"
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["probe_demo", "--encoder", NAME, "--weights", "random", "--work-dir", folder]
        commands = {
            "first step": [sys.executable, "-c", until_step, *arguments],
            "imports": [sys.executable, "-c", "import torch, timm, mmengine.runner, mmcv"],
        }
        sides = {
            name: lambda command=command: subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            for name, command in commands.items()
        }
        seconds = interleave(sides, rounds=1)
    detail = f"random weights, generated scenes; {milliseconds(seconds)}"
    return [figure(f"seconds from tools/train.py to the end of the first step, {NAME}", median(seconds["first step"]),
                   detail=detail)]  # fmt: skip


def _steps(name: str) -> list[dict]:
    """Seconds of one forward pass and one training step of the ADE20K probe, one image of 512 px, random weights."""
    from mmengine.config import Config

    config = Config.fromfile(find_config("probe_ade20k"))
    config.model.encoder.update(name=name, weights="random")
    config.model.heads.segmentation.task.classes = "ade20k"
    probe = build(MODELS, config.model.to_dict()).train()
    optimizer = torch.optim.AdamW(probe.heads.parameters(), lr=1e-3)
    image = torch.randint(0, 256, (3, 512, 512), dtype=torch.uint8)
    sample = Sample(labels=torch.randint(0, 150, (512, 512)), original_size=(512, 512))

    def step():
        losses = probe([image], [sample], mode="loss")
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    seconds = interleave({"forward": lambda: probe([image]), "training step": step}, rounds=3)
    grid = probe.encoder.features([image]).maps[probe.taps[0]].shape[-2:]
    detail = f"grid {grid[0]}x{grid[1]}, batch 1, random weights, {milliseconds(seconds)}"
    return [figure(f"seconds of one {key}, {name}, 512 px", median(s), detail=detail) for key, s in seconds.items()]


@torch.no_grad()
def _bare(tower: nn.Module, pixels: torch.Tensor | dict) -> torch.Tensor | dict:
    """What timm itself needs: normalised pixels to final tokens, at the size that it was built for or a free one."""
    return tower.forward_features(**pixels) if isinstance(pixels, dict) else tower.forward_features(pixels)


def _interval(values: list[float]) -> tuple[float, float]:
    """Bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)
