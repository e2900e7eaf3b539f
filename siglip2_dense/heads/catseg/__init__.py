"""CAT-Seg's head, a file for each of its boxes: cost -> spatial and classes, in turn -> decoder."""

from siglip2_dense.heads.catseg.head import CATSegHead

__all__ = ["CATSegHead"]
