"""Published heads of other projects as head files of ours."""

from siglip2_dense.convert.checkpoint import convert
from siglip2_dense.convert.published import Wishes

__all__ = ["Wishes", "convert"]
