"""What devices can do, by data sheet or measured in a moment, and how long the work of a probe takes on them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch

from siglip2_dense.errors import UserError

ADAM = 28  # bytes that a step of Adam moves for each parameter: four numbers read, three written
LOSS, ARGMAX = 5, 2.2  # exponentials that take as long as a pixel's score of one class, trained on and predicted,
BESIDE = 20  # and scores that take as long as what else there is to do for a pixel
MOMENT = 0.5  # seconds of measuring
PASSES = 3  # over what a head reads and keeps: written, read, and read again going back


@dataclass(frozen=True)
class Device:
    """Peak rates, and what part of them is assumed to be reached."""

    name: str
    operations: dict[str, float]  # a second by precision, in matrix products
    exponentials: float  # a second
    memory: float  # bytes a second
    reached: dict[str, float]  # part of the operations that transformers and heads reach; an assumption, as are
    reached_otherwise: float = 0.7  # that of the two other rates,
    disk: float = 5e9  # bytes a second (one NVMe drive),
    keeps: float = 200e9  # bytes of a store that the main memory keeps once they have been read,
    step: float = 5e-3  # and the seconds of a training step, or a tested image, beside its arithmetic


# NVIDIA's data sheets: dense rates of the tensor cores for 16 bits. For "fp32" those of the ordinary cores, since this
# package does not let TF32 stand for it. Exponentials: 16 a clock and multiprocessor.
DEVICES = {
    "h100": Device(
        name="NVIDIA H100 SXM, 80 GB",
        operations={"fp32": 67e12, "bf16": 989e12, "fp16": 989e12},
        exponentials=132 * 16 * 1.83e9,
        memory=3.35e12,
        reached={"fp32": 0.6, "bf16": 0.4, "fp16": 0.4},
    ),
    "a100": Device(
        name="NVIDIA A100 SXM, 80 GB",
        operations={"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12},
        exponentials=108 * 16 * 1.41e9,
        memory=2.04e12,
        reached={"fp32": 0.6, "bf16": 0.4, "fp16": 0.4},
    ),
}


def measured_cpu() -> Device:
    """This machine's processor, with as many threads as torch may use: its rates are measured, in a second or two."""
    threads, generator = torch.get_num_threads(), torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1024, 1024, generator=generator)
    few, many = np.zeros((2, 2**14), np.float32), torch.zeros(2, 2**25)
    rates = {"fp32": 2 * 1024**3 / _seconds(lambda: a @ b)}
    a, b = a.bfloat16(), b.bfloat16()
    rates["bf16"] = 2 * 1024**3 / _seconds(lambda: a @ b)
    return Device(
        name=f"this CPU, {threads} threads (measured)",
        operations=rates,
        exponentials=threads * few[0].size / _seconds(lambda: np.exp(few[0], out=few[1])),
        memory=many.nbytes / _seconds(lambda: many[1].copy_(many[0])),
        reached={"fp32": 0.8, "bf16": 0.7},
        reached_otherwise=0.8,
        disk=2e9,
        keeps=0.7 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _seconds(work: Callable[[], object]) -> float:
    """The least of as many runs, after a first one, as fit into a moment: other programs may be at work too."""
    work()
    found, end = [], time.perf_counter() + MOMENT
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


class Work(NamedTuple):
    """Of one image, or of its windows together."""

    encoder: float  # operations
    through: float  # bytes that a convolutional encoder moves
    heads: float  # operations, forward
    training: float  # operations of the heads, forward and backward
    moved: float  # bytes that heads move, forward
    scores: float  # of pixels and classes that are predicted, BESIDE more for each pixel,
    losses: float  # and that a loss looks at
    stored: float  # bytes of features on disk

    @staticmethod
    def sum(parts) -> Work:
        return Work(*map(sum, zip(*parts, strict=True)))

    @staticmethod
    def mean(parts) -> Work:
        return Work(*map(mean, zip(*parts, strict=True)))


class Rates:
    """Seconds of work on a device."""

    def __init__(self, device: Device, encoder: str, heads: str, parameters: int):
        self.device, self.parameters = device, parameters
        rates = {precision: rate * device.reached[precision] for precision, rate in device.operations.items()}
        if encoder not in rates:
            raise UserError(f"precision={encoder!r} has no rate on {device.name}; give {' or '.join(rates)}.")
        self.encoder = rates[encoder]
        self.heads = rates[heads]
        self.memory = device.memory * device.reached_otherwise
        self.exponentials = device.exponentials * device.reached_otherwise

    def encode(self, work: Work) -> float:
        """A pass through the encoder."""
        return work.encoder / self.encoder + work.through / self.memory

    def step(self, batch: int, work: Work, straight: bool) -> float:
        """Of training, but for reading from a store, which goes on meanwhile."""
        heads = max(work.training / self.heads, PASSES * work.moved / self.memory)
        scores = LOSS * work.losses / self.exponentials
        fixed = self.device.step + ADAM * self.parameters / self.memory
        encoder = self.encode(work) if straight else 0
        return batch * (encoder + heads + scores) + fixed

    def test(self, work: Work, straight: bool) -> float:
        """Of an image, likewise."""
        heads = max(work.heads / self.heads, work.moved / self.memory)
        scores = ARGMAX * work.scores / self.exponentials
        encoder = self.encode(work) if straight else 0
        return encoder + heads + scores + self.device.step

    def extract(self, work: Work) -> float:
        """Of an image; writing goes on meanwhile."""
        return max(self.encode(work), work.stored / self.device.disk)
