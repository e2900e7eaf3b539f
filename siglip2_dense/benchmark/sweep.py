"""Many heads in one pass: a sweep of 24 settings against one probe, against 24 runs, and whether heads train the same.

A step is all that the engine does in one: forward, losses, backward, clipping and optimizers. Features are of a
ViT-B/16 at 512 pixels. Through the encoder, of random weights, a sweep is compared with one probe on the last layer;
from features in memory, as a store gives them, with a run for each of its settings.
"""

from __future__ import annotations

import torch
from mmengine.config import Config

from siglip2_dense.benchmark.measure import figure, interleave, milliseconds, ratio
from siglip2_dense.contracts import EncoderFacts, Features, Geometry, Sample, Size, Tap
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.engine.grid import Member, members
from siglip2_dense.engine.optimizers import JointOptimWrapper, optimizers_of
from siglip2_dense.models import DenseProbe

NAME, WIDTH, BLOCKS, PATCH = "siglip2-base-16-512", 768, 12, 16
SWEEP = dict(lr=[1e-4, 3e-4, 1e-3], weight_decay=[0, 1e-4], layers=["last", "last4"], pooled=["none", "concat"])
TASKS = {"exact loss": 11, "sampled loss": 150}  # classes
FACTS = EncoderFacts(
    name=NAME, fingerprint="", widths=(WIDTH,) * BLOCKS, strides=(PATCH,) * BLOCKS, prefix=(), pooled="map",
    pooled_width=WIDTH, final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=(32, 32),
    position_kernel="bicubic, antialias", parameters=0,
)  # fmt: skip


def run(quick: bool) -> list[dict]:
    """Figures: a sweep's step in parts of one probe's and of all its settings' alone, and how far heads differ."""
    side, batch = (256, 2) if quick else (512, 2)
    figures = []
    for loss, classes in TASKS.items():
        figures.append(_through_the_encoder(loss, classes, (side, side), batch, rounds=3 if quick else 5))
    for loss, classes in TASKS.items():
        figures.append(_from_features(loss, classes, (side, side), 2 * batch, rounds=3 if quick else 5))
    figures.append(_optimizers_alone(rounds=20))
    figures.append(_difference(steps=5 if quick else 20))
    return figures


def settings(loss: str, classes: int, sweep: dict = SWEEP) -> list[Member]:
    task = dict(type="Segmentation", classes=[f"class {k}" for k in range(classes)], loss=loss.split()[0])
    head = dict(head=dict(type="LinearHead"), task=task, optim=dict(type="AdamW", lr=1e-3))
    return members(Config(dict(model=dict(heads=dict(seg=head)), seed=0, sweep=sweep)))


class Steps:
    """Calling it makes one step of a probe's training on the next of its batches."""

    def __init__(self, heads: list[Member], batches: list[dict], encoder: FrozenEncoder | None = None):
        parts = {member.name: member.parts for member in heads}
        self.probe = DenseProbe(parts, encoder=encoder, facts=None if encoder else FACTS).train()
        self.optimizers = JointOptimWrapper(**optimizers_of(self.probe))
        self.batches, self.step = batches, 0

    def __call__(self) -> None:
        self.probe.step = self.step
        self.probe.train_step(self.batches[self.step % len(self.batches)], self.optimizers)
        self.step += 1


def _through_the_encoder(loss: str, classes: int, size: Size, count: int, rounds: int) -> dict:
    encoder = FrozenEncoder(NAME, weights="random")
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(count)]
    batches = [{"inputs": images, "data_samples": _labelled(classes, size, count)}]
    sweep = settings(loss, classes)
    sides = {"24 settings": Steps(sweep, batches, encoder), "one probe": Steps(sweep[:1], batches, encoder)}
    seconds = interleave(sides, rounds)
    return figure(
        f"24 settings / one probe through the encoder, {classes} classes, {loss}",
        ratio(seconds, "24 settings", "one probe"),
        1.3,
        detail=f"{milliseconds(seconds)}; {count} images of {size[0]} px",
    )


def _from_features(loss: str, classes: int, size: Size, count: int, rounds: int) -> dict:
    batches = [_batch(classes, size, count) for _ in range(2)]
    sweep = settings(loss, classes)
    together = Steps(sweep, batches)
    alone = [Steps([member], batches) for member in sweep]

    def each() -> None:
        for step in alone:
            step()

    seconds = interleave({"24 settings": together, "24 runs": each}, rounds)
    return figure(
        f"24 settings / 24 runs from features, {classes} classes, {loss}",
        ratio(seconds, "24 settings", "24 runs"),
        0.7 if loss == "sampled loss" else None,
        detail=f"{milliseconds(seconds)}; {count} images of {size[0]} px",
    )


def _optimizers_alone(rounds: int) -> dict:
    step = Steps(settings("exact loss", 150, dict(lr=[1e-4 + number * 1e-5 for number in range(24)])), [])
    for parameter in step.probe.parameters():
        parameter.grad = torch.randn_like(parameter)

    def update() -> None:
        for wrapper in step.optimizers.values():
            wrapper.step()

    seconds = interleave({"24 AdamW steps": update}, rounds)
    return figure(
        "seconds, 24 AdamW steps of heads 768 -> 150", sorted(seconds["24 AdamW steps"])[rounds // 2], detail="medians"
    )


def _difference(steps: int) -> dict:
    """Between the weights of a head that was trained beside 23 others and of the same head alone."""
    batches = [_batch(150, (256, 256), 4) for _ in range(3)]
    sweep = settings("exact loss", 150)
    together = Steps(sweep, batches)
    alone = [Steps([member], batches) for member in sweep]
    for _ in range(steps):
        for step in (together, *alone):
            step()
    differences = {
        member.setting: max(
            (own - its).abs().max().item()
            for own, its in zip(
                together.probe.heads[member.name].state_dict().values(),
                step.probe.heads[member.name].state_dict().values(),
                strict=True,
            )
        )
        for member, step in zip(sweep, alone, strict=True)
    }
    worst = max(differences, key=differences.get)
    return figure(
        "largest difference of a weight, swept and alone", differences[worst], 1e-5,
        detail=f"after {steps} steps of AdamW, 150 classes; of {worst}",
    )  # fmt: skip


def _labelled(classes: int, size: Size, count: int) -> list[Sample]:
    """Samples without images, whose labels are blocks of 32 pixels."""
    samples = []
    for index in range(count):
        labels = torch.randint(-1, classes, [side // 32 for side in size])
        labels = labels.repeat_interleave(32, 0).repeat_interleave(32, 1)
        samples.append(Sample(labels=labels, original_size=size, index=index))
    return samples


def _batch(classes: int, size: Size, count: int) -> dict:
    """Features of the last four layers in half precision, as they are stored."""
    cells = [side // PATCH for side in size]
    maps = {Tap(block, True): torch.randn(count, WIDTH, *cells).half() for block in range(BLOCKS - 4, BLOCKS)}
    geometry = (Geometry(size, (0, 0, *size), size, size, size),) * count
    features = Features(maps, geometry, pooled=torch.randn(count, WIDTH).half())
    return {"inputs": features, "data_samples": _labelled(classes, size, count)}
