"""Pictures of chosen images with their predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from siglip2_dense.contracts import Sample
from siglip2_dense.resample import resize_image
from siglip2_dense.viz.panels import save_picture


class Pictures:
    """Draws ``count`` images, evenly spread over a data set of ``length``, as ``evaluate`` comes by them.

    The image is the one that the encoder saw, at the size of the predictions.
    """

    def __init__(self, tasks: dict, length: int, folder: Path, count: int):
        self.tasks, self.folder = tasks, folder
        self.chosen = {i * length // count for i in range(count)} if count else set()

    def __call__(self, image: Callable[[], Tensor], sample: Sample, predictions: dict[str, Tensor]) -> None:
        if sample.index not in self.chosen:
            return
        pixels = pixels_of(image(), sample)
        for name, task in self.tasks.items():
            # with the position: some sets call the images of every scene alike
            path = self.folder / f"{sample.index:05d}_{Path(sample.path).stem}_{name}.png"
            save_picture(path, task.draw(pixels, sample, predictions[name]))


def pixels_of(image: Tensor, sample: Sample) -> np.ndarray:
    """An image (3, h, w) as (H, W, 3) at the size that its sample was read at."""
    pixels = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
    return pixels if pixels.shape[:2] == sample.original_size else resize_image(pixels, sample.original_size)
