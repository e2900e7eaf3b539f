"""Images with boxes that have names, to train detection on and to score it."""

from siglip2_dense.data.boxes import coco, lvis, mixture, objects365, transforms, visual_genome

__all__ = ["coco", "lvis", "mixture", "objects365", "transforms", "visual_genome"]
