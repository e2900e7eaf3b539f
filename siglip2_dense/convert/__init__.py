"""Published heads of other projects as head files of ours."""

from siglip2_dense.convert.published import convert

__all__ = ["convert"]
