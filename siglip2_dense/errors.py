"""The error whose sentence a person reads, and the nearest name to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The command line prints the sentence alone, without a traceback.

    The sentence says what is wrong, where, and what to do next.
    """


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that ends an error: the known names closest to ``name``, else ``otherwise``."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(match) for match in close)}?" if close else otherwise


def first_line(error: Exception) -> str:
    """What a library says, without its advice to programmers."""
    line = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {line}"


def first_difference(before, now, where: str = "", origin: str = "in the saved run") -> str:
    """A clause about the first place in which two plain structures differ, or an empty string.

    origin: where ``before`` is from.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            place = f"{where}.{key}" if where else str(key)
            if key not in before or key not in now:
                return f"{place} is set only {'now' if key in now else origin}"
            if found := first_difference(before[key], now[key], place, origin):
                return found
        return ""
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            if found := first_difference(old, new, f"{where}.{number}", origin):
                return found
        return ""
    return "" if before == now else f"{where} was {before!r} {origin} and is {now!r} now"
