"""Semantic segmentation: one score per class and pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import IGNORE, Geometry, Sample, Size
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import CLASSES, PALETTES, classes_of
from siglip2_dense.losses.sampled import DrawnPixels
from siglip2_dense.losses.upsampled import upsampled_cross_entropy
from siglip2_dense.metrics.segmentation import SegmentationMetric
from siglip2_dense.registry import TASKS
from siglip2_dense.tasks.canvas import cells_on_canvas, on_canvas, pixels_on_canvas
from siglip2_dense.tasks.cells import is_overview, sums
from siglip2_dense.tasks.windows import argmax_map, blended_argmax
from siglip2_dense.viz.colours import palette
from siglip2_dense.viz.panels import segmentation_panel


@TASKS.register_module()
class Segmentation:
    """Cross-entropy in training, arg-max in prediction, mIoU as metric.

    Args:
        classes: the name of a label set, a list of names, or a file with one name a line.
        average: what the summed loss is divided by: the "valid" pixels, or "all" pixels of the canvas, padding and
            ignored ones included (mmsegmentation's default, and so DINOv2's; protocols of its linear heads). Images at
            their native aspect have no canvas in common: there "all" are the images' own pixels.
        loss: "exact", of every labelled pixel, or "sampled": estimated from ``samples`` pixels of each image. These are
            a function of the step and of the image's position in its data set.
        samples: see ``loss``; with fewer labelled pixels the estimate is exact.
    """

    target = "labels"  # the field of a Sample that it learns
    headline = "mIoU"
    higher_is_better = True
    mirrored = ()  # channels of the raw map that change their sign in a mirror
    scoring = {
        "aggregation": "sums over the whole set",
        "mIoU": "over the classes that are labelled or predicted",
        "mIoU_labelled": "over the classes that are labelled",
    }

    def __init__(self, classes: str | Sequence[str], average: str = "valid", loss: str = "exact", samples: int = 4096):
        if average not in ("valid", "all"):
            raise UserError(f"Segmentation: average={average!r}; give 'valid' or 'all'.")
        if loss not in ("exact", "sampled"):
            raise UserError(f"Segmentation: loss={loss!r}; give 'exact' or 'sampled'.")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise UserError(f"Segmentation: samples={samples!r}; give the number of pixels, 1 or more.")
        self.classes = classes_of(classes)
        known = {names: PALETTES[key] for key, names in CLASSES.items() if key in PALETTES}
        self.palette = known.get(self.classes) or palette(len(self.classes))
        self.average = average
        self.sampled, self.samples = loss == "sampled", samples

    @property
    def channels(self) -> int:
        return len(self.classes)

    @property
    def meaning(self) -> dict:
        """What a raw map stands for: a head is of use only under the same."""
        return {"classes": list(self.classes)}

    @property
    def kin(self) -> tuple:
        """Tasks that agree in it learn the same, and ``together`` gives the losses of all at once."""
        return (Segmentation, self.average, self.sampled and self.samples)

    def loss(
        self, raw: Tensor, geometry: Sequence[Geometry], samples: Sequence[Sample], step: int | None = None
    ) -> dict[str, Tensor]:
        """raw: (B, K, h, w) of images on one canvas. It is that of the scores brought to the padded canvas, or to each
        image's own size; they are never built there.
        """
        return self.together([raw], geometry, samples, step)[0]

    def together(
        self, raws: Sequence[Tensor], geometry: Sequence[Geometry], samples: Sequence[Sample], step: int | None = None
    ) -> list[dict[str, Tensor]]:
        """``loss`` of the raw map of each of several heads; what is done with the labels is done once."""
        labels = on_canvas(samples, self.target, geometry, none=IGNORE)
        seeds = [(step or 0, sample.index + 1) for sample in samples]
        groups = [(images, labels[images, :h, :w]) for images, _, (h, w) in cells_on_canvas(raws[0], geometry)]
        if self.sampled:
            drawn = [DrawnPixels(own, self.samples, seeds[images]) for images, own in groups]
            losses, counted = [own.cross_entropy for own in drawn], sum(own.counted for own in drawn)
        else:
            losses = [partial(upsampled_cross_entropy, labels=own) for _, own in groups]
            counted = torch.count_nonzero(labels != IGNORE)
        pixels = pixels_on_canvas(geometry) if self.average == "all" else counted.clamp(min=1)
        terms = []
        for raw in raws:
            own = zip(cells_on_canvas(raw, geometry), losses, strict=True)
            terms.append({"loss_ce": sum(loss(cells, denominator=pixels) for (_, cells, _), loss in own)})
        return terms

    def predict(self, windows: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
        """The class map (H, W) of one image at its original size, from the raw maps (K, h, w) of its windows."""
        if len({geometry.window for _, geometry in windows}) < len(windows):  # mirrored ones lie over the others
            return blended_argmax(windows)
        return argmax_map(windows)

    def ideal(self, labels: Tensor, places: Sequence[tuple[Size, Geometry]]) -> Tensor:
        """(H, W) int64: what a head would predict that said of each cell how often each class is in it, see
        ``cells.sums``; up-sampled and joined as any scores.

        labels: (H, W) of one image. Of a model that also looks at an overview, the windows alone count.
        """
        counts = torch.bincount(labels.flatten() - IGNORE, minlength=1)[1:]
        present = counts.nonzero()[:, 0]  # no other class is the best anywhere
        if not len(present):
            return torch.zeros_like(labels)
        each = (labels == present[:, None, None]).float()
        found = [(sums(each, grid, place), place) for grid, place in places if not is_overview(place)]
        shares = [(values / values.sum(0).clamp(min=1e-9), place) for values, place in found]
        return present[Segmentation.predict(self, shares)]

    def metric(self) -> SegmentationMetric:
        return SegmentationMetric(self.channels)

    def draw(self, image: np.ndarray, sample: Sample, prediction: Tensor) -> np.ndarray:
        """Input | ground truth | prediction with a legend; image: (H, W, 3) uint8 at the prediction's size."""
        labels = None if sample.labels is None else sample.labels.cpu().numpy()
        return segmentation_panel(image, labels, prediction.cpu().numpy(), self.classes, self.palette)
