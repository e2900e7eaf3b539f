"""A training loss at the pixels of the labels, with its gradient: without the up-sampled scores, and with them.

Beside it, its estimate from 4096 pixels of each image, and the binary cross-entropy. Labels are squares of 16 pixels,
some of which do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_dense.benchmark.measure import figure, in_own_process, interleave, milliseconds, peak_increase, ratio
from siglip2_dense.contracts import IGNORE
from siglip2_dense.losses.blocks import Block
from siglip2_dense.losses.sampled import sampled_cross_entropy
from siglip2_dense.losses.segmentation import cross_entropy
from siglip2_dense.losses.upsampled import upsampled_bce, upsampled_cross_entropy
from siglip2_dense.resample import resize_logits

CASES = {  # classes: (images, cells, pixels), and the targets of time and memory in parts of the plain loss
    847: ((1, 32, 512), 0.06, 0.02),
    150: ((2, 32, 512), 0.10, 0.02),
    19: ((4, 32, 512), 0.22, None),
    11: ((8, 24, 336), 0.35, 0.10),
}
WITH_BINARY = (150,)
SAMPLES = 4096

ROUNDS = 5  # of a profile
PARTS = {  # methods of blocks
    "first pixels and labels": ("__init__",),
    "exponentials": ("exponentials",),
    "own class": ("at_labels", "put_at_labels"),
    "going back": ("pull_back",),
}


def losses(classes: int, shape: tuple[int, int, int]) -> dict[str, Callable[[], Tensor]]:
    """Forward and backward passes on the same scores; they give the value."""
    torch.manual_seed(0)
    images, cells, pixels = shape
    scores = torch.randn(images, classes, cells, cells, requires_grad=True)
    labels = torch.randint(IGNORE, classes, (images, pixels // 16, pixels // 16))
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)

    def plain_binary() -> Tensor:
        targets = torch.zeros(images, classes + 1, pixels, pixels)
        targets.scatter_(1, labels.where(labels != IGNORE, classes)[:, None], 1)
        return F.binary_cross_entropy_with_logits(resize_logits(scores, (pixels, pixels)), targets[:, :classes])

    found = {
        "fused": lambda: upsampled_cross_entropy(scores, labels),
        "plain": lambda: cross_entropy(resize_logits(scores, (pixels, pixels)), labels),
        "sampled": lambda: sampled_cross_entropy(scores, labels, SAMPLES, range(images)),
        "fused binary": lambda: upsampled_bce(scores, labels),
        "plain binary": plain_binary,
    }

    def both_ways(loss: Callable[[], Tensor]) -> Tensor:
        scores.grad = None
        value = loss()
        value.backward()
        return value.detach()

    return {name: lambda loss=loss: both_ways(loss) for name, loss in found.items()}


def memory(side: str, classes: int) -> int:
    """Bytes by which this process grows at most; call it in a process of its own."""
    losses(classes, (1, 2, 32))[side]()  # what the libraries set up at their first use is no part of it
    return peak_increase(losses(classes, CASES[classes][0])[side])


def where(classes: int) -> str:
    """Milliseconds of a fused pass in one thread, by what is done to blocks."""
    spent, threads = dict.fromkeys(PARTS, 0.0), torch.get_num_threads()

    def timed(name: str, method: Callable) -> Callable:
        def call(*arguments):
            start = time.perf_counter()
            found = method(*arguments)
            spent[name] += time.perf_counter() - start
            return found

        return call

    loss = losses(classes, CASES[classes][0])["fused"]
    torch.set_num_threads(1)
    try:
        loss()
        with ExitStack() as stack:
            for name, methods in PARTS.items():
                for method in methods:
                    stack.enter_context(patch.object(Block, method, timed(name, getattr(Block, method))))
            start = time.perf_counter()
            for _ in range(ROUNDS):
                loss()
            whole = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    told = {**spent, "sums, logarithms and the rest": whole - sum(spent.values())}
    return ", ".join(f"{name} {1e3 * taken / ROUNDS:.0f}" for name, taken in told.items())


def run(quick: bool = False) -> list[dict]:
    """Figures for each number of classes; ``quick`` makes fewer rounds."""
    figures = []
    for classes, (shape, longest, largest) in CASES.items():
        case = "{0} classes, {1} x {2} x {2} cells, {3} x {3} pixels".format(classes, *shape)
        sides = losses(classes, shape)
        if classes not in WITH_BINARY:
            sides = {name: side for name, side in sides.items() if "binary" not in name}
        seconds = interleave(sides, rounds=3 if quick else 9)
        apart = abs(sides["fused"]() / sides["plain"]() - 1).item()
        detail = f"{milliseconds(seconds)}; values apart by {apart:.0e}"
        detail += f"; ms in one thread: {where(classes)}"
        figures.append(figure(f"fused / plain, time, {case}", ratio(seconds, "fused", "plain"), longest, detail=detail))
        figures.append(figure(f"sampled / plain, time, {case}", ratio(seconds, "sampled", "plain")))
        if classes in WITH_BINARY:
            value = ratio(seconds, "fused binary", "plain binary")
            figures.append(figure(f"binary, fused / plain, time, {case}", value))
        if largest:
            grown = {side: in_own_process("loss", f"memory({side!r}, {classes})") for side in ("fused", "plain")}
            detail = ", ".join(f"{side} {size / 2**20:.1f} MiB" for side, size in grown.items())
            value = grown["fused"] / grown["plain"]
            figures.append(figure(f"fused / plain, extra memory, {case}", value, largest, detail=detail))
    return figures
