"""Depth: scores of bins, or one value, for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from siglip2_dense.contracts import Geometry, Sample, Size
from siglip2_dense.errors import UserError
from siglip2_dense.losses.depth import gradient_loss, sig_loss
from siglip2_dense.metrics.depth import DepthMetric
from siglip2_dense.registry import TASKS
from siglip2_dense.resample import resize_logits
from siglip2_dense.tasks.canvas import maps_on_canvas, on_canvas
from siglip2_dense.tasks.cells import sums
from siglip2_dense.tasks.windows import blend
from siglip2_dense.viz.panels import depth_panel


def expected_depth(scores: Tensor, min_depth: float, max_depth: float, epsilon: float) -> Tensor:
    """(B, K, h, w) scores of K bins -> (B, 1, h, w) float32: the mean of their centres under (relu(score) + epsilon).

    The centres are K even steps from ``min_depth`` to ``max_depth``, both included (DINOv2, 7.4, after AdaBins).
    epsilon: what a bin weighs at least. 0.1 in DINOv2 and probe3d, 0.001 in TIPS; heads cannot be exchanged between
    the two.
    """
    count = scores.shape[1]
    centres = torch.linspace(min_depth, max_depth, count, device=scores.device)
    both = torch.stack([centres, torch.ones_like(centres)])
    weights = scores.float().relu()
    # both sums in one product: the weights with their epsilon would be another map of K channels
    moment, mass = (both @ weights.flatten(2)).view(scores.shape[0], 2, 1, *scores.shape[2:]).unbind(1)
    return (moment + epsilon * count * (min_depth + max_depth) / 2) / (mass + epsilon * count)


@TASKS.register_module()
class Depth:
    """Scale-invariant log loss and gradient loss in training, RMSE as metric.

    Args:
        min_depth, max_depth: range of the predictions, and of the depths that a score counts, in the data's unit.
        bins: number of bins, see ``expected_depth``; none for a head that says the depth itself, relu(raw) + min_depth.
        epsilon: see ``expected_depth``.
        sig, gradient: weights of the two losses. DINOv2 has 1 and 0.5, but its gradient term compares images of the
            batch and is 0 for two of them; probe3d has 10 and 0.5.
        warm_up: for so many steps ``sig_loss`` sees the mean alone (DINOv2: 100).
        legacy_gradient: the gradient loss along the axes of DINOv2's code, batch and channel.
        crop: "eigen" scores the crop of Eigen et al. 2014, of maps of 480 x 640 pixels.
        unit: of the depths, for pictures.
    """

    target = "depth"  # the field of a Sample that it learns
    headline = "rmse"
    higher_is_better = False
    mirrored = ()  # channels of the raw map that change their sign in a mirror

    def __init__(
        self,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        bins: int | None = 256,
        epsilon: float = 0.1,
        sig: float = 1.0,
        gradient: float = 0.0,
        warm_up: int = 0,
        legacy_gradient: bool = False,
        crop: str | None = None,
        unit: str = "m",
    ):
        if (
            not all(isinstance(depth, (int, float)) for depth in (min_depth, max_depth))
            or not 0 < min_depth < max_depth
        ):
            raise UserError(
                f"Depth: min_depth={min_depth!r} and max_depth={max_depth!r}; give 0 < min_depth < max_depth."
            )
        if bins is not None and not (isinstance(bins, int) and bins >= 2):
            raise UserError(f"Depth: bins={bins!r}; give 2 or more, or none for a head that says the depth itself.")
        if bins is not None and epsilon <= 0:
            raise UserError(f"Depth: epsilon={epsilon}; give more than 0, or bins without a score divide by 0.")
        self.min_depth, self.max_depth = min_depth, max_depth
        self.bins, self.epsilon = bins, epsilon
        self.sig, self.gradient = sig, gradient
        self.warm_up, self.legacy_gradient = warm_up, legacy_gradient
        self.metric = partial(DepthMetric, min_depth, max_depth, crop)
        self.metric()  # a crop that is none is refused here
        self.crop, self.unit = crop, unit

    @property
    def channels(self) -> int:
        return self.bins or 1

    @property
    def meaning(self) -> dict:
        """What a raw map stands for: a head is of use only under the same."""
        names = ("min_depth", "max_depth", "bins", "epsilon") if self.bins else ("min_depth", "bins")
        return {name: getattr(self, name) for name in names}

    @property
    def scoring(self) -> dict:
        return {
            "aggregation": "per image, then the mean over images",
            "range": [self.min_depth, self.max_depth],
            "crop": self.crop,
        }

    def depth_of(self, raw: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 1, h, w) float32."""
        if self.bins:
            return expected_depth(raw, self.min_depth, self.max_depth, self.epsilon)
        return raw.float().relu() + self.min_depth

    def loss(
        self, raw: Tensor, geometry: Sequence[Geometry], samples: Sequence[Sample], step: int | None = None
    ) -> dict[str, Tensor]:
        """raw: (B, channels, h, w) of images on one canvas. The depth, not the scores, is brought to the canvas, or to
        each image's own size.
        """
        prediction = maps_on_canvas(raw, geometry, lambda cells, size: resize_logits(self.depth_of(cells), size))
        depth = on_canvas(samples, self.target, geometry, none=0)
        valid = depth > 0
        warming = step is not None and step < self.warm_up
        losses = {"loss_sig": self.sig * sig_loss(prediction, depth, valid, warming)}
        if self.gradient:
            term = gradient_loss(prediction, depth, valid, self.legacy_gradient)
            losses["loss_gradient"] = self.gradient * term
        return losses

    def predict(self, windows: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
        """(1, H, W) depth of one image at its original size, from the raw maps (K, h, w) of its windows."""
        depths = [
            (self.depth_of(raw[None])[0].clamp(self.min_depth, self.max_depth), geometry) for raw, geometry in windows
        ]
        return blend(depths)

    def ideal(self, depth: Tensor, places: Sequence[tuple[Size, Geometry]]) -> Tensor:
        """(1, H, W): what a head would predict that said of each cell the mean of the depths in it that are scored,
        see ``cells.sums``; up-sampled and joined as any depths, from the cells that have any.

        depth: (1, H, W) of one image.
        """
        scored = (depth > self.min_depth) & (depth < self.max_depth)
        maps = torch.cat([torch.where(scored, depth, 0), scored.float()])
        cells = [(sums(maps, grid, place), place) for grid, place in places]
        known = [(values[1:] > 0, place) for values, place in cells]
        means = [(torch.cat([torch.where(has, values[:1] / values[1:], 0), has.float()]), place)
                 for (values, place), (has, _) in zip(cells, known, strict=True)]  # fmt: skip
        value, weight = blend(means)[:, None]
        return torch.where(weight > 0, value / weight, self.min_depth)

    def draw(self, image: np.ndarray, sample: Sample, prediction: Tensor) -> np.ndarray:
        """Input | ground truth | prediction | error; image: (H, W, 3) uint8 at the prediction's size."""
        depth = None if sample.depth is None else sample.depth[0].cpu().numpy()
        return depth_panel(image, depth, prediction[0].cpu().numpy(), self.unit)
