"""A folder of stores: which there are, which of them serves, and what may go."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.errors import UserError, first_difference
from siglip2_dense.files import write_text
from siglip2_dense.store.key import FORMAT, covers, digest
from siglip2_dense.store.store import MANIFEST, Store

STALE = 3600  # seconds after which a half-written file is nobody's work under way


def create(folder: Path, key: dict, facts: EncoderFacts, images_per_shard: int) -> Store:
    """A store of this key with nothing in it yet, or the one that is there."""
    path = _place(folder, key)
    manifest = dict(format=FORMAT, key=key, facts=facts.to_dict(), images_per_shard=images_per_shard)
    try:
        if not (path / MANIFEST).is_file():
            write_text(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: no features can be kept here ({error.strerror}); give another folder.") from error
    return load(path)


def load(path: Path) -> Store:
    """The store in ``path``. Raises UserError where there is none, or one of another version."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path} holds features of another version ({manifest['format']}); remove it.")
        facts = EncoderFacts.from_dict(manifest["facts"])
        return Store(path, manifest["key"], facts, int(manifest["images_per_shard"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / MANIFEST} cannot be read as a store's; remove the folder.") from error


def stores(folder: Path) -> Iterator[Store]:
    """Those of a folder, by name."""
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        yield load(path.parent)


def find(folder: Path, key: dict, views: int = 1, files: Callable[[int], Sequence[Path]] | None = None) -> Store | None:
    """The store of this key, whole or not, else a whole one that holds more taps of the same; none if there is none.

    views, files: as in ``Store.problems``.
    """
    path = _place(folder, key)
    if (path / MANIFEST).is_file():
        found = load(path)
        if difference := first_difference(found.key, key, origin="in the store"):
            raise UserError(f"{path / MANIFEST} was changed by hand: {difference}; remove the folder.")
        return found
    for found in stores(folder):
        if covers(found.key, key) and not found.problems(views, files):
            return found
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs have left half written in the stores of a folder."""
    for path in folder.glob("*/.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def chosen(folder: Path, names: Sequence[str]) -> list[Store]:
    """The stores of these names. Raises UserError for one that is not there."""
    known = {store.path.name: store for store in stores(folder)}
    for name in names:
        if name not in known:
            raise UserError(f"{folder} has no store {name!r}; it has {', '.join(known) or 'none'}.")
    return [known[name] for name in names]


def _place(folder: Path, key: dict) -> Path:
    return folder / f"{re.sub(r'[^0-9A-Za-z]+', '_', key['data']['split'])}-{digest(key)}"
