"""Surface normals: a direction for each pixel, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from siglip2_dense.contracts import Geometry, Sample, Size
from siglip2_dense.losses.normals import angular_loss, uncertain_angular_loss
from siglip2_dense.metrics.normals import NormalsMetric
from siglip2_dense.registry import TASKS
from siglip2_dense.resample import resize_directions, resize_logits
from siglip2_dense.tasks.canvas import maps_on_canvas, on_canvas
from siglip2_dense.tasks.cells import sums
from siglip2_dense.tasks.windows import blend
from siglip2_dense.viz.panels import normals_panel


@TASKS.register_module()
class Normals:
    """Angular loss in training, RMSE of the angle as metric.

    Args:
        uncertainty: four channels, the direction and one that says how much its angle counts (probe3d, after Bae et
            al. 2021), instead of three.
    """

    target = "normals"  # the field of a Sample that it learns
    headline = "rmse"
    higher_is_better = False
    mirrored = (0,)  # channels of the raw map that change their sign in a mirror: x
    scoring = {"aggregation": "per image, then the mean over images"}

    def __init__(self, uncertainty: bool = True):
        self.uncertainty = uncertainty

    @property
    def channels(self) -> int:
        return 4 if self.uncertainty else 3

    @property
    def meaning(self) -> dict:
        """What a raw map stands for: a head is of use only under the same."""
        return {"uncertainty": self.uncertainty}

    def loss(
        self, raw: Tensor, geometry: Sequence[Geometry], samples: Sequence[Sample], step: int | None = None
    ) -> dict[str, Tensor]:
        """raw: (B, channels, h, w) of images on one canvas, or at sizes of their own."""
        direction = maps_on_canvas(raw[:, :3], geometry, resize_directions)
        normals = on_canvas(samples, self.target, geometry, none=0)
        valid = normals.any(1)
        if not self.uncertainty:
            return {"loss_angle": angular_loss(direction, normals, valid)}
        uncertainty = maps_on_canvas(raw[:, 3:], geometry, resize_logits)
        return {"loss_angle": uncertain_angular_loss(direction, uncertainty, normals, valid)}

    def predict(self, windows: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
        """(3, H, W) unit vectors of one image at its original size, from the raw maps (K, h, w) of its windows."""
        directions = [(raw[:3], geometry) for raw, geometry in windows]
        return blend(directions, resize_directions)

    def ideal(self, normals: Tensor, places: Sequence[tuple[Size, Geometry]]) -> Tensor:
        """(3, H, W): what a head would predict that said of each cell the direction of the sum of the normals in it,
        see ``cells.sums``; up-sampled and joined as any directions.

        normals: (3, H, W) of one image.
        """
        return self.predict([(sums(normals, grid, place), place) for grid, place in places])

    def metric(self) -> NormalsMetric:
        return NormalsMetric()

    def draw(self, image: np.ndarray, sample: Sample, prediction: Tensor) -> np.ndarray:
        """Input | ground truth | prediction | error; image: (H, W, 3) uint8 at the prediction's size."""
        normals = None if sample.normals is None else sample.normals.cpu().numpy()
        return normals_panel(image, normals, prediction.cpu().numpy())
