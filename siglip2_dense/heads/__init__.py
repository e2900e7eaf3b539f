"""Features to raw maps: the trainable part of a probe."""

from siglip2_dense.heads.catseg import CATSegHead
from siglip2_dense.heads.dpt import DPTHead, Probe3DHead
from siglip2_dense.heads.linear import LinearHead
from siglip2_dense.heads.mmseg import MMSegHead
from siglip2_dense.heads.owlvit import OWLViTHead

__all__ = ["CATSegHead", "DPTHead", "LinearHead", "MMSegHead", "OWLViTHead", "Probe3DHead"]
