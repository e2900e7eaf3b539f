"""Evaluation with sliding windows against mmsegmentation's: time, memory, and the same predictions and scores.

Both sides get the same windows, the same head and the same labels, and predict and count one image. Ours never builds
the map of all classes at the size of the image. The first comparison leaves the encoder out (the feature maps are
ready), so that it shows what follows it; the second has a ViT-B/16 of random weights on both sides. Where our time goes
is told apart: the head, joining windows with the arg-max, and counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from siglip2_dense.benchmark.measure import figure, in_own_process, interleave, milliseconds, peak_increase, ratio
from siglip2_dense.contracts import IGNORE, EncoderFacts, Features, Geometry, Sample
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.models import DenseProbe
from siglip2_dense.models.windows import window_boxes

SIZE, CROP, STRIDE, PATCH = (512, 683), 512, 341, 16  # an ADE20K image with its short side at 512
VIT = "vit_base_patch16_siglip_256"


class ReadyMaps(nn.Module):
    """An encoder that costs nothing: one map of 64 channels for each window, in turn."""

    precision, trains = "fp32", False

    def __init__(self):
        super().__init__()
        self.facts = EncoderFacts(
            name="ready maps", fingerprint="", widths=(64,), strides=(PATCH,), prefix=(), pooled="mean",
            pooled_width=64, final_norm=False, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=None,
            position_kernel=None, parameters=0,
        )  # fmt: skip
        self.maps = torch.randn(len(window_boxes(SIZE, CROP, STRIDE)), 64, CROP // PATCH, CROP // PATCH)
        self.geometry = Geometry((CROP, CROP), (0, 0, CROP, CROP), (CROP, CROP), (CROP, CROP), (CROP, CROP))
        self.next = 0

    def take(self, count: int) -> Tensor:
        first, self.next = self.next, (self.next + count) % len(self.maps)
        return self.maps[first : first + count]

    def features(self, images, taps, canvas=None, pooled=False, aligned=None) -> Features:
        return Features(dict.fromkeys(taps, self.take(len(images))), (self.geometry,) * len(images))

    def bare(self, pixels: Tensor) -> Tensor:
        """The same for mmsegmentation."""
        return self.take(len(pixels))


class Vit(FrozenEncoder):
    """A ViT-B/16 with random weights; mmsegmentation gets timm's own."""

    def __init__(self):
        super().__init__(VIT, weights="random")

    def bare(self, pixels: Tensor) -> Tensor:
        return self.tower.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0]


@dataclass
class Case:
    """What both sides evaluate: a probe, an image and its labels."""

    probe: DenseProbe
    image: Tensor  # (3, H, W) uint8
    labels: Tensor

    @property
    def classes(self) -> int:
        return self.probe.tasks["segmentation"].channels


def make_case(classes: int, vit: bool = False) -> Case:
    """One image of ``SIZE``, labelled in blocks of 32 pixels, and a probe on ready maps or on a ViT-B/16."""
    torch.manual_seed(0)
    task = dict(type="Segmentation", classes=[f"class {k}" for k in range(classes)])
    probe = DenseProbe(
        dict(segmentation=dict(head=dict(type="LinearHead", norm=vit), task=task)),
        encoder=Vit() if vit else ReadyMaps(),
        inference=dict(mode="slide", crop=CROP, stride=STRIDE),
    )
    nn.init.uniform_(probe.heads["segmentation"].bn.running_mean, -0.1, 0.1)
    patches = torch.randint(IGNORE, classes, (SIZE[0] // 32 + 1, SIZE[1] // 32 + 1))
    labels = patches.repeat_interleave(32, 0).repeat_interleave(32, 1)[: SIZE[0], : SIZE[1]].contiguous()
    return Case(probe.eval(), torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8), labels)


class Ours:
    """Predict and count with this package."""

    def __init__(self, case: Case):
        self.case = case
        self.sample = Sample(original_size=SIZE)

    def __call__(self) -> None:
        (found,) = self.case.probe([self.case.image], [self.sample], mode="predict")
        self.prediction = found["segmentation"]
        self.metric = self.case.probe.tasks["segmentation"].metric()
        self.metric.update(self.prediction, self.case.labels, index=0)

    def scores(self) -> dict[str, float]:
        return self.metric.compute()


class Theirs:
    """The same with mmsegmentation: ``EncoderDecoder`` in slide mode, and ``IoUMetric``."""

    def __init__(self, case: Case):
        from mmengine import ConfigDict
        from mmengine.registry import DefaultScope
        from mmseg.evaluation.metrics import IoUMetric
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead
        from mmseg.models.segmentors import EncoderDecoder
        from mmseg.registry import MODELS
        from mmseg.structures import SegDataSample

        head = case.probe.heads["segmentation"]

        class Backbone(nn.Module):
            def forward(self, pixels):
                return (case.probe.encoder.bare(pixels),)

        class Head(BaseDecodeHead):
            def forward(self, features):
                return head.conv(head.bn(features[0]))

        for part in (Backbone, Head):
            MODELS.register_module(name=f"Benchmark{part.__name__}", module=part, force=True)
        sizes = dict(in_channels=1, channels=1, num_classes=case.classes)
        with DefaultScope.overwrite_default_scope("mmseg"):  # a run in this process may have set another
            self.model = EncoderDecoder(
                backbone=dict(type="BenchmarkBackbone"),
                decode_head=dict(type="BenchmarkHead", **sizes),
                test_cfg=ConfigDict(mode="slide", crop_size=(CROP, CROP), stride=(STRIDE, STRIDE)),
            ).eval()
        self.metric = IoUMetric(ignore_index=IGNORE, prefix="mmseg")
        self.metric.dataset_meta = {"classes": tuple(map(str, range(case.classes)))}
        self.case, self.sample = case, SegDataSample
        self.pixels = (case.image[None].float() / 255 - 0.5) / 0.5  # as the encoder of either case normalises them
        self.meta = dict(ori_shape=SIZE, img_shape=SIZE, pad_shape=SIZE, padding_size=[0] * 4)

    @torch.no_grad()
    def __call__(self) -> None:
        (sample,) = self.model.predict(self.pixels, [self.sample(metainfo=dict(self.meta))])
        self.prediction = sample.pred_sem_seg.data[0]
        counted = dict(pred_sem_seg=dict(data=self.prediction), gt_sem_seg=dict(data=self.case.labels))
        self.metric.results.clear()
        self.metric.process({}, [counted])

    def scores(self) -> dict[str, float]:
        """As ``compute_metrics``, which rounds to two places."""
        areas = [sum(area) for area in zip(*self.metric.results, strict=True)]
        scores = self.metric.total_area_to_metrics(*areas)
        means = {name: 100 * float(np.nanmean(values)) for name, values in scores.items()}
        return {"mIoU": means["IoU"], "mAcc": means["Acc"], "aAcc": means["aAcc"]}


def memory(side: str, classes: int) -> int:
    """Bytes by which this process grows at most for one image; call it in a process of its own."""
    sides = {"ours": Ours, "mmseg": Theirs}
    sides[side](make_case(2))()  # what the libraries set up at their first use is no part of it
    return peak_increase(sides[side](make_case(classes)))


def compare(classes: int, rounds: int, vit: bool = False, warmup: int = 1) -> tuple[Ours, Theirs, dict]:
    """Both sides after their rounds, and the seconds of each."""
    case = make_case(classes, vit)
    ours, theirs = Ours(case), Theirs(case)
    return ours, theirs, interleave({"ours": ours, "mmseg": theirs}, rounds, warmup)


def parts(ours: Ours, rounds: int) -> dict[str, list[float]]:
    """Seconds of what follows the features."""
    probe, windows = ours.case.probe, []
    task = probe.tasks["segmentation"]
    with patch.object(task, "predict", windows.append):
        probe([ours.case.image], [ours.sample], mode="predict")
    features = probe.encoder.features(windows[0], probe.taps)
    sides = {
        "head": lambda: probe.raw(features),
        "windows and arg-max": lambda: task.predict(windows[0]),
        "counting": lambda: task.metric().update(ours.prediction, ours.case.labels, index=0),
    }
    with torch.no_grad():
        return interleave(sides, rounds)


def run(quick: bool = False) -> list[dict]:
    """Figures of both comparisons; ``quick`` makes fewer rounds."""
    figures = []
    for classes, target in ((150, 0.15), (847, 0.08)):
        ours, theirs, seconds = compare(classes, 3 if quick else 7)
        after = f"after the features, {classes} classes"
        figures.append(figure(f"time {after}", ratio(seconds, "ours", "mmseg"), target, detail=milliseconds(seconds)))
        seconds = parts(ours, 3 if quick else 7)
        share = median(seconds["windows and arg-max"]) / sum(map(median, seconds.values()))
        name = f"windows and arg-max / all {after}"
        figures.append(figure(name, share, detail=milliseconds(seconds)))
        agreement = (ours.prediction == theirs.prediction).double().mean().item()
        figures.append(figure(f"equal pixels, {classes} classes", agreement, 0.9999, "higher"))
        scores, baseline = ours.scores(), theirs.scores()
        apart = max(abs(scores[name] - baseline[name]) for name in baseline)
        detail = f"largest difference of {', '.join(baseline)} in points"
        figures.append(figure(f"difference of scores, {classes} classes", apart, 1e-3, detail=detail))
    grown = {side: in_own_process("evaluate", f"memory({side!r}, 847)") for side in ("ours", "mmseg")}
    detail = ", ".join(f"{side} {value / 2**20:.0f} MiB" for side, value in grown.items())
    figures.append(figure("peak memory, 847 classes", grown["ours"] / grown["mmseg"], 0.05, detail=detail))
    *_, seconds = compare(150, 1 if quick else 5, vit=True, warmup=0 if quick else 1)
    name, detail = "time with a ViT-B/16, 150 classes", milliseconds(seconds)
    return [*figures, figure(name, ratio(seconds, "ours", "mmseg"), 1.0, detail=detail)]
