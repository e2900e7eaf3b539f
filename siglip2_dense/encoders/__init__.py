"""Images to features: frozen encoders by name."""

from siglip2_dense.encoders.frozen import FrozenEncoder

__all__ = ["FrozenEncoder"]
