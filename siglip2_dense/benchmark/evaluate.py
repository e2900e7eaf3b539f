"""Evaluation with sliding windows against mmsegmentation's: time, memory, and the same predictions and scores.

Both sides get the same windows, the same head and the same labels, and predict and count one image. Ours never builds
the map of all classes at the size of the image. The first comparison leaves the encoder out (the feature maps are
ready), so that it shows what follows it; the second has a ViT-B/16 of random weights on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from siglip2_dense.benchmark.measure import figure, in_own_process, interleave, milliseconds, peak_increase, ratio
from siglip2_dense.contracts import IGNORE, Box, Geometry
from siglip2_dense.metrics.segmentation import SegmentationMetric
from siglip2_dense.tasks.windows import argmax_map, window_boxes

SIZE, CROP, STRIDE, PATCH = (512, 683), 512, 341, 16  # an ADE20K image with its short side at 512
VIT = "vit_base_patch16_siglip_256"


class ReadyMaps(nn.Module):
    """An encoder that costs nothing: one map for each window, in turn."""

    def __init__(self, windows: int, width: int = 64):
        super().__init__()
        self.maps = torch.randn(windows, width, CROP // PATCH, CROP // PATCH)
        self.next, self.width = 0, width

    def forward(self, pixels: Tensor) -> Tensor:
        first, self.next = self.next, (self.next + len(pixels)) % len(self.maps)
        return self.maps[first : first + len(pixels)]


class Vit(nn.Module):
    """The last map of a timm model with random weights."""

    def __init__(self):
        super().__init__()
        import timm

        self.model = timm.create_model(VIT, pretrained=False, dynamic_img_size=True, num_classes=0)
        self.width = self.model.num_features

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0]


@dataclass
class Case:
    """What both sides evaluate."""

    classes: int
    encoder: nn.Module
    head: nn.Module
    image: Tensor = field(default_factory=lambda: torch.randn(1, 3, *SIZE))
    boxes: list[Box] = field(default_factory=lambda: window_boxes(SIZE, CROP, STRIDE))
    labels: Tensor = field(init=False)

    def __post_init__(self):
        patches = torch.randint(IGNORE, self.classes, (SIZE[0] // 32 + 1, SIZE[1] // 32 + 1))
        self.labels = patches.repeat_interleave(32, 0).repeat_interleave(32, 1)[: SIZE[0], : SIZE[1]].contiguous()


def make_case(classes: int, vit: bool = False) -> Case:
    torch.manual_seed(0)
    encoder = Vit() if vit else ReadyMaps(len(window_boxes(SIZE, CROP, STRIDE)))
    head = nn.Sequential(nn.BatchNorm2d(encoder.width), nn.Conv2d(encoder.width, classes, 1))
    nn.init.uniform_(head[0].running_mean, -0.1, 0.1)
    return Case(classes, encoder.eval(), head.eval())


class Ours:
    """Predict and count with this package."""

    def __init__(self, case: Case):
        self.case, self.metric = case, SegmentationMetric(case.classes)

    @torch.no_grad()
    def __call__(self) -> None:
        case = self.case
        pixels = torch.cat([case.image[:, :, y : y + h, x : x + w] for y, x, h, w in case.boxes])
        raw = case.head(case.encoder(pixels))
        window = Geometry((CROP, CROP), (0, 0, CROP, CROP), (CROP, CROP), SIZE, SIZE)
        geometry = [replace(window, window=box) for box in case.boxes]
        self.prediction = argmax_map(list(zip(raw, geometry, strict=True)))
        self.metric.update(self.prediction, case.labels, index=0)

    def scores(self) -> dict[str, float]:
        return self.metric.compute()


class Theirs:
    """The same with mmsegmentation: ``EncoderDecoder`` in slide mode, and ``IoUMetric``."""

    def __init__(self, case: Case):
        from mmengine import ConfigDict
        from mmseg.evaluation.metrics import IoUMetric
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead
        from mmseg.models.segmentors import EncoderDecoder
        from mmseg.registry import MODELS
        from mmseg.structures import SegDataSample

        class Backbone(nn.Module):
            def forward(self, pixels):
                return (case.encoder(pixels),)

        class Head(BaseDecodeHead):
            def forward(self, features):
                return case.head(features[0])

        for part in (Backbone, Head):
            MODELS.register_module(name=f"Benchmark{part.__name__}", module=part, force=True)
        sizes = dict(in_channels=1, channels=1, num_classes=case.classes)
        self.model = EncoderDecoder(
            backbone=dict(type="BenchmarkBackbone"),
            decode_head=dict(type="BenchmarkHead", **sizes),
            test_cfg=ConfigDict(mode="slide", crop_size=(CROP, CROP), stride=(STRIDE, STRIDE)),
        ).eval()
        self.metric = IoUMetric(ignore_index=IGNORE, prefix="mmseg")
        self.metric.dataset_meta = {"classes": tuple(map(str, range(case.classes)))}
        self.case, self.sample = case, SegDataSample
        self.meta = dict(ori_shape=SIZE, img_shape=SIZE, pad_shape=SIZE, padding_size=[0] * 4)

    @torch.no_grad()
    def __call__(self) -> None:
        (sample,) = self.model.predict(self.case.image, [self.sample(metainfo=dict(self.meta))])
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


def run(quick: bool = False) -> list[dict]:
    """Figures of both comparisons; ``quick`` makes fewer rounds."""
    figures = []
    for classes, target in ((150, 0.15), (847, 0.08)):
        ours, theirs, seconds = compare(classes, 3 if quick else 7)
        after = f"after the features, {classes} classes"
        figures.append(figure(f"time {after}", ratio(seconds, "ours", "mmseg"), target, detail=milliseconds(seconds)))
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
