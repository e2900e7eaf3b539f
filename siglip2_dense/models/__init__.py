"""Encoders and heads composed into models that mmengine's runner trains."""

from siglip2_dense.models.probe import DenseProbe

__all__ = ["DenseProbe"]
