"""Pictures of chosen images with their predictions."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from siglip2_dense.contracts import Sample
from siglip2_dense.viz.panels import save_picture


class Pictures:
    """Draws ``count`` images, evenly spread over a data set, as ``evaluate`` comes by them.

    The image is read again, since evaluation sees it resized and predictions have its original size.
    """

    def __init__(self, probe, data, folder: Path, count: int):
        self.probe, self.data, self.folder = probe, data, folder
        self.chosen = {i * len(data) // count for i in range(count)} if count else set()

    def __call__(self, sample: Sample, predictions: dict[str, Tensor]) -> None:
        if sample.index not in self.chosen:
            return
        original = self.data.read(self.data.entries[sample.index]).image.permute(1, 2, 0).numpy()
        for name, task in self.probe.tasks.items():
            picture = task.draw(original, sample, predictions[name])
            save_picture(self.folder / f"{Path(sample.path).stem}_{name}.png", picture)
