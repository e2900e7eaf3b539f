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
from siglip2_dense.store.key import FORMAT, covers, digest, leaves
from siglip2_dense.store.store import MANIFEST, Store

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


def nearest(folder: Path, key: dict, views: int = 1, files: Callable[[int], Sequence[Path]] | None = None) -> str:
    """Which store of the same images, for the same purpose, is nearest to serving, and what keeps it from that; an
    empty string where there is none. views, files: as in ``find``.
    """
    wanted, purpose = leaves(key), (key["data"]["name"], key["data"]["split"], key["windows"] is None)
    found = []
    for store in stores(folder):
        data, own = store.key["data"], leaves(store.key)
        if (data["name"], data["split"], store.key["windows"] is None) == purpose:
            others = [place for place in wanted.keys() | own.keys() if wanted.get(place) != own.get(place)]
            first = min(others, key=lambda place: ("fingerprint" in place, place), default="")  # names say more
            found.append((len(others), store, own, first))
    if not found:
        return ""
    _, store, own, place = min(found, key=lambda one: one[0])
    if covers(store.key, key):
        return f"{store.path} has more layers, but {next(iter(store.problems(views, files).values()))}"
    return f"in {store.path}, {place} is {own.get(place)!r}, and now {wanted.get(place)!r}"


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
