"""A folder of stores: which there are, which of them serves, and what may go."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.errors import UserError, first_difference
from siglip2_dense.files import size_text, write_text
from siglip2_dense.store.key import FORMAT, covers, digest, leaves
from siglip2_dense.store.store import MANIFEST, NOT_EXTRACTED, Store, folder_bytes

OF = ("encoder", "weights", "data", "for", "taps", "type")  # what a table says that features are of
NAMED, LENGTH = 4, 24  # of the things in which stores differ otherwise, and characters of each
STALE = 3600  # seconds after which a half-written file is nobody's work under way


def planned(folder: Path, key: dict, facts: EncoderFacts, images_per_shard: int) -> Store:
    """A store of this key as it would be; nothing is written."""
    return Store(_place(folder, key), key, facts, images_per_shard)


def create(store: Store) -> Store:
    """Begin a store that was planned; gives the one that is there, should another process have begun it."""
    parts = dict(key=store.key, facts=store.facts.to_dict(), images_per_shard=store.images_per_shard)
    try:
        if not (store.path / MANIFEST).is_file():
            write_text(store.path / MANIFEST, json.dumps(dict(format=FORMAT, **parts), indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"{store.path.parent}: no features can be kept here ({error.strerror}); give another folder."
        ) from error
    return load(store.path)


def load(path: Path) -> Store:
    """The store in ``path``. Raises UserError where there is none, or one of another version."""
    prune = f"remove it with siglip2-dense features prune {path.parent} {path.name}."
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path} holds features of another version ({manifest['format']}); {prune}")
        facts = EncoderFacts.from_dict(manifest["facts"])
        return Store(path, manifest["key"], facts, int(manifest["images_per_shard"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / MANIFEST} cannot be read as a store's; {prune}") from error


class Unreadable(NamedTuple):
    """A store of another version, or with a broken manifest."""

    path: Path
    problem: str

    def describe(self) -> dict:
        return {"store": self.path.name, "size": size_text(folder_bytes(self.path)), "complete": "cannot be read"}


def contents(folder: Path) -> Iterator[Store | Unreadable]:
    """All of a folder, by name."""
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            yield load(path.parent)
        except UserError as error:
            yield Unreadable(path.parent, str(error))


def stores(folder: Path) -> Iterator[Store]:
    """Those that can be read, by name."""
    return (one for one in contents(folder) if isinstance(one, Store))


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


def nearest(folder: Path, key: dict, views: int = 1, files: Callable[[int], Sequence[Path]] | None = None) -> str:
    """Which store of the same images, for the same purpose, is nearest to serving, and what keeps it from that; an
    empty string where there is none. views, files: as in ``find``.
    """

    def purpose(key: dict) -> tuple:
        return key["data"]["name"], key["data"]["split"], key["windows"] is None

    def distance(store: Store) -> int:
        own, wanted = leaves(store.key), leaves(key)
        return sum(own.get(place) != wanted.get(place) for place in own.keys() | wanted.keys())

    alike = [store for store in stores(folder) if purpose(store.key) == purpose(key)]
    if not alike:
        return ""
    store = min(alike, key=distance)
    if covers(store.key, key):
        return f"{store.path} has more layers, but {next(iter(store.problems(views, files).values()), NOT_EXTRACTED)}"
    # names and numbers say more than fingerprints
    difference = first_difference(_readable(store.key), _readable(key), origin="there")
    return f"in {store.path}, {difference or first_difference(store.key, key, origin='there')}"


def _readable(key: dict) -> dict:
    bare = {
        part: {name: value for name, value in key[part].items() if name != "fingerprint"}
        for part in ("data", "encoder")
    }
    return {**key, **bare}


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs have left half written in the stores of a folder."""
    for path in folder.glob("*/.*.tmp"):
        with contextlib.suppress(OSError):  # another process does so too, or it may not be removed
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def remove(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Remove the stores of these names, readable or not, and say of each what it took.

    Raises UserError for one that is not there, before any is removed, and for one that cannot be.
    """
    known = [path.parent.name for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    for name in names:
        if name not in known:
            raise UserError(f"{folder} has no store {name!r}; it has {', '.join(known) or 'none'}.")
    for name in names:
        size = size_text(folder_bytes(folder / name))
        try:
            shutil.rmtree(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name} cannot be removed ({error.strerror}); see to that.") from error
        yield f"removed {folder / name}, {size}"


def described(found: Sequence[Store | Unreadable]) -> list[dict]:
    """A line of a table for each; those that are alike in what is said of all have what they differ in as well."""
    rows = [one.describe() for one in found]
    alike = defaultdict(list)
    for one, row in zip(found, rows, strict=True):
        if isinstance(one, Store):
            alike[tuple(row[name] for name in OF)].append((row, leaves(one.key)))
    for group in alike.values():
        places = sorted(set().union(*(own for _, own in group)))
        places = [place for place in places if len({str(own.get(place)) for _, own in group}) > 1]
        for row, own in group if places else ():
            words = [f"{place.removeprefix('data.settings.')}={_short(own.get(place))}" for place in places]
            row["otherwise"] = " ".join(words[:NAMED]) + " …" * (len(words) > NAMED)
    return rows


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…"


def _place(folder: Path, key: dict) -> Path:
    return folder / f"{re.sub(r'[^0-9A-Za-z]+', '_', key['data']['split'])}-{digest(key)}"
