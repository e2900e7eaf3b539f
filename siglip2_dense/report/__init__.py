"""Records -> Markdown and one page: read ``runs``, ``tables``, ``content`` in this order."""

from siglip2_dense.report.write import write

__all__ = ["write"]
