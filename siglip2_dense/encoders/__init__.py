"""Images to features, and class names to vectors in the same space: frozen encoders by name."""

from siglip2_dense.encoders.frozen import FrozenEncoder
from siglip2_dense.encoders.text import TextEncoder

__all__ = ["FrozenEncoder", "TextEncoder"]
