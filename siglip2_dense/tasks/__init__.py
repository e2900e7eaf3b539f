"""What a raw map means: channels, loss, prediction, metric and picture of each task."""

from siglip2_dense.tasks.depth import Depth
from siglip2_dense.tasks.detection import Detection
from siglip2_dense.tasks.normals import Normals
from siglip2_dense.tasks.open_vocabulary import OpenVocabulary
from siglip2_dense.tasks.queries import ZeroShotSegmentation
from siglip2_dense.tasks.segmentation import Segmentation

__all__ = ["Depth", "Detection", "Normals", "OpenVocabulary", "Segmentation", "ZeroShotSegmentation"]
