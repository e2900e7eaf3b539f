"""Memory of this process that is used again instead of going back to the kernel."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep what is freed for what is needed next, from now on and in processes that are forked.

    By itself the C library gives each large block back at once and gets the next one page by page, which takes as long
    as the passes of a small convolutional network do. The process never gets smaller then; it does not grow further,
    but for gaps between blocks. Done with glibc, the C library of nearly every Linux; nothing happens elsewhere.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
