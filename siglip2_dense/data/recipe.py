"""How a published data set is fetched: its archives, what is made of them, and what it holds when whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Archive:
    """A file to fetch and what to do with it."""

    url: str
    size: int | None  # bytes, about; for the check of free space where the server does not say
    md5: str | None  # none where nobody publishes one; a damaged archive shows when it is used
    use: Callable[[Path, Path], None]  # of the archive and the root
    makes: str  # below the root; there only when the archive has been used


@dataclass(frozen=True)
class Derived:
    """What is made of files below the root."""

    make: Callable[[Path], None]  # of the root
    makes: str
    needs: str = ""  # below the root, from what is fetched by hand: nothing is made before it is there


@dataclass(frozen=True)
class ByHand:
    """What the user has to fetch."""

    makes: str  # below the root, may be a pattern
    how: str  # a clause that says from where and to where; {root} stands for the root


@dataclass(frozen=True)
class Recipe:
    counts: dict[str, int | None]  # images of each split; none where nobody has published it
    archives: tuple[Archive, ...] = ()
    derived: tuple[Derived, ...] = ()
    by_hand: tuple[ByHand, ...] = ()
    parts: dict[str, str] = field(default_factory=dict)  # what of the root a split is in, if not in all
    objects: int | None = None
