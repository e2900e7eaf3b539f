"""Features to raw maps: the trainable part of a probe."""

from siglip2_dense.heads.linear import LinearHead
from siglip2_dense.heads.mmseg import MMSegHead

__all__ = ["LinearHead", "MMSegHead"]
