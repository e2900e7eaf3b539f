"""What a step of each head costs, without its encoder: forward, loss, backward, on features of So400m's width.

A batch is 8 images of 512 pixels. On a processor without instructions for bfloat16 torch's backward pass of a bfloat16
convolution is a plain loop, tens of times slower than in float32: there bf16 is compared with fp32 on one image of 252
pixels.
"""

from __future__ import annotations

import time
from statistics import median

import torch
import torch.nn.functional as F

from siglip2_dense.benchmark.measure import figure, numbers_of_own_process, peak_increase
from siglip2_dense.contracts import EncoderFacts, Features, Geometry, Sample
from siglip2_dense.models import DenseProbe

PATCH, WIDTH, BLOCKS = 14, 1152, 27
LONG = 10  # seconds
HEADS = {  # name: head and task
    "linear, 150 classes": (dict(type="LinearHead"), dict(type="Segmentation", classes="ade20k")),
    "linear depth, 256 bins": (
        dict(type="LinearHead", pooled="concat", batch_norm=False, upsample=4),
        dict(type="Depth"),
    ),
    "DPT, 150 classes": (dict(type="DPTHead"), dict(type="Segmentation", classes="ade20k")),
    "DPT depth, 256 bins": (dict(type="DPTHead"), dict(type="Depth", gradient=0.5)),
    "DPT normals": (dict(type="DPTHead"), dict(type="Normals")),
    "probe3d normals, 512 wide": (dict(type="Probe3DHead"), dict(type="Normals")),
}


def run(quick: bool) -> list[dict]:
    """Figures: seconds of forward, loss and backward, and the most memory they take, of each head and precision."""
    cases = [("fp32", 1, 126), ("bf16", 1, 126)]
    if not quick:
        cases = [("fp32", 8, 512)]
        cases += [("bf16", 8, 512)] if _has_bfloat16() else [("fp32", 1, 252), ("bf16", 1, 252)]
    figures = []
    for name in ("linear depth, 256 bins", "DPT normals") if quick else HEADS:
        for precision, batch, pixels in cases:
            seconds, peak = numbers_of_own_process("heads", f"measure({name!r}, {precision!r}, {batch}, {pixels})")
            case = f"{name}, {precision}, {batch} x {pixels} px"
            detail = f"grid {-(-pixels // PATCH)}, width {WIDTH}"
            figures.append(figure(f"seconds, {case}", seconds, detail=f"forward, loss, backward; {detail}"))
            figures.append(figure(f"peak MiB, {case}", peak, detail=f"above the features; {detail}"))
    return figures


def measure(name: str, precision: str, batch: int, pixels: int) -> tuple[float, float]:
    """Seconds of a step, and MiB of its peak above what features, targets and parameters hold.

    The first step gives the memory; where it took less than LONG seconds it was the warm-up of three that give the
    median time, else it gives that too.
    """
    step, found = _step(name, precision, batch, pixels), []

    def timed():
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)

    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        timed()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = peak_increase(timed)
    if found[0] < LONG:
        found.clear()
        for _ in range(3):
            timed()
    return median(found), peak / 2**20


def _has_bfloat16() -> bool:
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _step(name: str, precision: str, batch: int, pixels: int):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    head, task = HEADS[name]
    facts = _facts()
    probe = DenseProbe({"head": dict(head=head, task=task)}, facts=facts, precision=precision).to(device).train()
    grid = -(-pixels // PATCH)
    size, padded = (pixels, pixels), (grid * PATCH, grid * PATCH)
    start = (padded[0] - pixels) // 2
    geometry = (Geometry(padded, (start, start, *size), size, size, size),) * batch
    maps = {tap: torch.randn(batch, WIDTH, grid, grid, device=device) for tap in probe.taps}
    features = Features(maps, geometry, pooled=torch.randn(batch, WIDTH, device=device))
    sample = Sample(
        labels=torch.randint(0, 150, size),
        depth=torch.rand(1, *size) * 9 + 0.5,
        normals=F.normalize(torch.randn(3, *size), dim=0),
        original_size=size,
    ).to(device)

    def step():
        losses = probe(features, [sample] * batch, mode="loss")
        sum(losses.values()).backward()
        probe.zero_grad(set_to_none=True)

    return step


def _facts() -> EncoderFacts:
    """Of SigLIP 2 So400m, patch 14, without building it."""
    return EncoderFacts(
        name="siglip2-so400m-14-384",
        fingerprint="",
        widths=(WIDTH,) * BLOCKS,
        strides=(PATCH,) * BLOCKS,
        prefix=(),
        pooled="map",
        pooled_width=WIDTH,
        final_norm=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        native_grid=(27, 27),
        position_kernel="bicubic, antialias",
        parameters=0,
    )
