"""What a raw map means: channels, loss, prediction, metric and picture of each task."""

from siglip2_dense.tasks.segmentation import Segmentation

__all__ = ["Segmentation"]
