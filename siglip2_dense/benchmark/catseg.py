"""What CAT-Seg takes for one image in the published inference, four windows and an overview, with random weights.

"exact" scores all classes, "reference" the 256 nearest of each view as the published code does; up to 256 classes they
are the same. Shapes are those of CLIP B/16 and L/14 at 336 pixels. The texts are not in it: they are computed once for
a vocabulary. With --quick one view in place of five, and the time that each class adds, of so few that both modes are
the same.
"""

from __future__ import annotations

import time

import torch

from siglip2_dense.benchmark.measure import figure, numbers_of_own_process, peak_increase
from siglip2_dense.contracts import Sample
from siglip2_dense.registry import MODELS, build

ENCODERS = {"B/16": ("clip-base-16-224", 512), "L/14": ("clip-large-14-336", 768)}  # and width of the text space
ORIGINAL = (480, 640)  # of the image
LONG = 1  # seconds
FEW, MORE = 16, 48  # classes of --quick


def run(quick: bool) -> list[dict]:
    """Figures: seconds and the most memory that one image takes, for each encoder, number of classes and mode."""
    if quick:
        return _quick()
    figures = []
    for encoder in ENCODERS:
        for classes, mode in ((150, "exact"), (847, "exact"), (847, "reference")):
            seconds, peak = _measured(encoder, classes, mode, views=5)
            case = f"{encoder}, {classes} classes, {mode}"
            detail = f"1 image of {ORIGINAL[0]} x {ORIGINAL[1]}, 5 views, fp32"
            figures.append(figure(f"seconds, {case}", seconds, detail=detail))
            figures.append(figure(f"peak MiB, {case}", peak, detail=f"above the model and the image; {detail}"))
    return figures


def _quick() -> list[dict]:
    figures = []
    for encoder in ENCODERS:
        few, more = (_measured(encoder, classes, "exact", views=1) for classes in (FEW, MORE))
        step = MORE - FEW
        detail = f"1 view, fp32: {FEW} classes {few[0]:.2f} s, {MORE} classes {more[0]:.2f} s"
        figures.append(figure(f"ms a class, {encoder}", 1e3 * (more[0] - few[0]) / step, detail=detail))
        figures.append(figure(f"peak MiB, {encoder}, {MORE} classes", more[1], detail="1 view, fp32"))
    return figures


def _measured(encoder: str, classes: int, mode: str, views: int) -> list[float]:
    return numbers_of_own_process("catseg", f"measure({encoder!r}, {classes}, {mode!r}, {views})")


def measure(encoder: str, classes: int, mode: str, views: int) -> tuple[float, float]:
    """Seconds of an image, and MiB of its peak above what model and image hold.

    The first image gives the memory; where it took less than LONG seconds it was the warm-up of the one that gives the
    time.
    """
    name, width = ENCODERS[encoder]
    inference = dict(mode="whole", classes=mode)
    if views > 1:
        inference |= dict(mode="slide", crop=384, stride=256, size=(640, 640), overview=True)
    text = dict(
        model_args=dict(embed_dim=width, width=64, heads=1, layers=1), cache=False
    )  # the least that gives vectors
    task = dict(type="OpenVocabulary", classes=[f"thing {number}" for number in range(classes)])
    model = build(MODELS, dict(
        type="CATSeg", encoder=dict(type="FrozenEncoder", name=name, weights="random"), text=text, inference=inference,
        heads=dict(segmentation=dict(head=dict(type="CATSegHead"), task=task)),
    )).eval().to("cuda" if torch.cuda.is_available() else "cpu")  # fmt: skip
    image = torch.randint(0, 256, (3, 640, 853), dtype=torch.uint8)
    batch = model.data_preprocessor({"inputs": [image], "data_samples": [Sample(original_size=ORIGINAL)]}, False)
    found = []

    def timed():
        start = time.perf_counter()
        model(**batch, mode="predict")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = peak_increase(timed)
    if found[0] < LONG:
        timed()
    return found[-1], peak / 2**20
