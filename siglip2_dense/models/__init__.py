"""Encoders and heads composed into models that mmengine's runner trains, or that need no training."""

from siglip2_dense.models.catseg import CATSeg
from siglip2_dense.models.owlvit import OWLViT
from siglip2_dense.models.probe import DenseProbe
from siglip2_dense.models.zeroshot import ZeroShot

__all__ = ["CATSeg", "DenseProbe", "OWLViT", "ZeroShot"]
