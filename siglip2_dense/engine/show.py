"""The images that a head does worst on, or best: its predictions beside the truth, each with its own score."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import Tensor

from siglip2_dense.contracts import Detections, Sample
from siglip2_dense.engine.configs import check_keys
from siglip2_dense.engine.evaluate import evaluate_data, read_head, report, take_head, test_loading
from siglip2_dense.engine.pictures import pixels_of
from siglip2_dense.engine.run import build_probe
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.metrics.detection import DetectionAP
from siglip2_dense.registry import DATASETS, build
from siglip2_dense.viz.layout import titled
from siglip2_dense.viz.panels import grid, save_picture

COLUMNS, WIDE = 2, 1200  # of panels that are not wider than so many pixels


class Shown(NamedTuple):
    """An image with its panel; they are in order of what is to be kept."""

    rank: tuple[float, int]  # how much it is wanted, and of equal ones the first
    scores: dict[str, float]
    path: str
    panel: np.ndarray  # (h, w, 3) uint8


class Extremes:
    """Keeps the ``count`` images with the worst scores by a task's own metric, or the best, as ``evaluate`` comes by.

    An image has its score alone, as if it were the whole set: mIoU over the classes that are in it or predicted. Where
    nothing can be scored it is passed over.
    """

    def __init__(self, name: str, task, dataset, count: int, best: bool):
        self.name, self.task, self.dataset, self.count = name, task, dataset, count
        self.sign = 1 if best == task.higher_is_better else -1
        self._kept: list[Shown] = []

    def __call__(self, image: Callable[[], Tensor], sample: Sample, predictions: Mapping) -> None:
        prediction = predictions[self.name]
        scores = self._boxes(sample, prediction) if self.task.target == "boxes" else self._map(sample, prediction)
        score = scores[self.task.headline]
        rank = self.sign * score, -sample.index
        if math.isnan(score) or (len(self._kept) == self.count and rank < self._kept[0].rank):
            return
        panel = self.task.draw(pixels_of(image(), sample), sample, prediction)
        keep = heapq.heappush if len(self._kept) < self.count else heapq.heapreplace
        keep(self._kept, Shown(rank, scores, sample.path, panel))

    def in_order(self) -> list[Shown]:
        """The worst, or the best, first."""
        return sorted(self._kept, key=lambda shown: shown.rank, reverse=True)

    def _map(self, sample: Sample, prediction: Tensor) -> dict[str, float]:
        metric = self.task.metric()
        metric.update(prediction, getattr(sample, self.task.target), 0)
        return metric.compute()

    def _boxes(self, sample: Sample, found: Detections) -> dict[str, float]:
        scoring = self._scoring
        number = scoring["image_ids"][sample.index]
        content = {
            "images": [self._images[number]],
            "categories": self._annotations["categories"],
            "annotations": self._of_image.get(number, []),
        }
        metric = DetectionAP(content, scoring["rule"], scoring["category_ids"], (number,))
        metric.update(0, found.boxes, found.scores, found.labels)
        return metric.compute()

    @cached_property
    def _scoring(self) -> dict:
        return self.dataset.scoring

    @cached_property
    def _annotations(self) -> Mapping:
        source = self._scoring["annotations"]
        return source if isinstance(source, Mapping) else json.loads(Path(source).read_bytes())

    @cached_property
    def _images(self) -> dict:
        return {image["id"]: image for image in self._annotations["images"]}

    @cached_property
    def _of_image(self) -> dict[int, list[dict]]:
        found: dict[int, list[dict]] = {}
        for annotation in self._annotations["annotations"]:
            found.setdefault(annotation["image_id"], []).append(annotation)
        return found


def show_extremes(
    config: Config, path: str | None, out: str | Path, count: int, best: bool = False, head: str | None = None
) -> dict:
    """Evaluate a head file on the config's test data and draw its worst images, or its best, in one PNG.

    path: none for a model that has nothing to train. head: the name of one of several; by default the first. Returns
    plain data: the head, its metric, the scores of the set and of each image that is drawn, in the picture's order.
    """
    if count < 1:
        raise UserError(f"--count {count}: give 1 or more.")
    check_keys(config)
    content, loading = read_head(config, path), test_loading(config)
    data = build(DATASETS, loading["dataset"], seed=config.seed)
    probe = build_probe(config, data)
    take_head(config, probe, content, path)
    name = head or next(iter(content.heads if content else probe.tasks))  # as it was trained; a dumped config is sorted
    if name not in probe.tasks:
        raise UserError(
            f"no head is called {name!r}: {nearest(name, probe.tasks, 'there is ' + ', '.join(probe.tasks))}"
        )
    task, probe = probe.tasks[name], probe.to(get_device())
    extremes = Extremes(name, task, data, count, best)
    with torch.no_grad():
        metrics = evaluate_data(config, probe, data, loading, f"evaluating {data.split}", extremes)
    scores = report({name: metrics[name]}, {name: task})["metrics"]
    found = extremes.in_order()
    panels = [
        titled(f"{number}. {task.headline} {shown.scores[task.headline]:.4g}, {Path(shown.path).name}", shown.panel)
        for number, shown in enumerate(found, 1)
    ]
    columns = COLUMNS if max((panel.shape[1] for panel in panels), default=0) <= WIDE else 1
    save_picture(out, grid(panels, columns=min(len(panels), columns)))
    return {
        "picture": str(out),
        "head": name,
        "metric": task.headline,
        "data": {"name": data.name, "split": data.split, "images": metrics[name].images},
        "scores": scores,
        "images": [{"path": shown.path, "index": -shown.rank[1], "scores": shown.scores} for shown in found],
    }
