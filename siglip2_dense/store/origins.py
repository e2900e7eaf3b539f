"""The files that stored images were read from, as they were then, so that one that is replaced is noticed.

Their names and sizes are in a store's key. Whether one is still the same is seen from its size and the time of its last
change, and where that is another, as of a copy, from its content.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from siglip2_dense.files import digest


class Origin(NamedTuple):
    """A file, and how it was before it was read."""

    path: Path
    size: int
    time: int  # of the last change, in nanoseconds

    @classmethod
    def of(cls, path: Path) -> Origin:
        state = path.stat()
        return cls(path, state.st_size, state.st_mtime_ns)

    def note(self) -> list:
        """Size, time and checksum; none of a file that is another by now, and may have been before it was read."""
        with suppress(OSError):  # it is gone
            content = _content(self)
            if Origin.of(self.path) == self:
                return [self.size, self.time, content]
        return [self.size, self.time, ""]


def compared(files: Sequence[Path], notes: Sequence[list]) -> tuple[str, list[list]]:
    """What is not as these notes say, or an empty string, and the notes with today's times."""
    if len(files) != len(notes):
        return "it is not known which files it was made of", list(notes)
    today = []
    for path, (size, time, content) in zip(files, notes, strict=True):
        now = Origin.of(path)
        if now.size != size or not content or (now.time != time and _content(now) != content):
            return f"{path} is another than it was made of", list(notes)
        today.append([size, now.time, content])
    return "", today


@lru_cache(maxsize=16)  # some data sets have all images in one large file
def _content(origin: Origin) -> str:
    return digest(origin.path)
