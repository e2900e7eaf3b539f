"""What the encoder's wrapper adds to the bare timm model, and what a step of a probe costs.

A pass of the whole network takes hundreds of milliseconds and varies by some percent, so that what is added cannot be
seen in it. It is measured with the blocks replaced by identities, and set in relation to the whole pass; the ratio of
whole passes stands beside it with its interval.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import torch
from torch import nn

from siglip2_dense.benchmark.measure import figure, interleave, milliseconds
from siglip2_dense.contracts import Sample
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.engine.configs import find_config
from siglip2_dense.registry import MODELS, build

NAME = "siglip2-base-16-256"
BATCH = 2


def run(quick: bool) -> list[dict]:
    """Figures: added time in parts of a pass, and paired ratios, at the native size and at 512 px."""
    figures = []
    for size in (256,) if quick else (256, 512):
        encoder = FrozenEncoder(NAME, weights="random")
        images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
        pixels, _ = encoder._pixels(images, None)
        sides = {
            "wrapper": lambda encoder=encoder, images=images: encoder.features(images),
            "timm": lambda encoder=encoder, pixels=pixels: _bare(encoder.tower, pixels),
        }
        whole = interleave(sides, rounds=5 if quick else 15)
        blocks = encoder.tower.blocks
        encoder.tower.blocks = nn.Sequential(*(nn.Identity() for _ in blocks))
        empty = interleave(sides, rounds=51, warmup=5)
        encoder.tower.blocks = blocks
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
def _bare(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What timm itself needs: normalised pixels to final tokens, at the size that it was built for or a free one."""
    return tower.forward_features(pixels)


def _interval(values: list[float]) -> tuple[float, float]:
    """Bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)
