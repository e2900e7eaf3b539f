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
