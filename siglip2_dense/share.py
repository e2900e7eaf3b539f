"""Heads that are shared: in a folder, or in a repository of the Hugging Face hub ("hub:owner/name", "…@revision").

A shared head is a head file with its card, perhaps a picture, and SHA256SUMS. What is fetched is data alone: no other
files are taken, each must have its checksum, and the head must be one, before any of them gets its name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from siglip2_dense import head_file, hub
from siglip2_dense.card import TAG, card, is_summary, summary
from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic, digest, write_text
from siglip2_dense.hub import HUB, Repository

HEAD, CARD, PICTURE, SUMS = "head.safetensors", "README.md", "picture.png", "SHA256SUMS"
FILES = (CARD, PICTURE, HEAD)  # that a shared head may have beside SUMS; the head is the last to be put in place
RESULTS = "results.json"  # of a run


def push(
    source: str | Path,
    target: str,
    force: bool = False,
    private: bool = False,
    picture: bool = True,
    licence: str | None = None,
) -> list[str]:
    """Share a head: that of a finished run's work dir, or a head file. Returns the names of the files at ``target``.

    force: also where another head is shared already. private, licence: of a new repository, and of the head (an SPDX
    name). Raises UserError for a source that is no head, and for what the hub refuses.
    """
    path, place = _head_of(Path(source)), _place_of(target)
    content = head_file.read(path)
    name = place.name.partition("/")[2] if isinstance(place, Repository) else place.resolve().name
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn = next(iter(sorted((path.parent / "pictures").glob("*.png"))), None) if picture else None
        shutil.copyfile(path, folder / HEAD)
        if drawn is not None:
            shutil.copyfile(drawn, folder / PICTURE)
        record = _record_of(path, content)
        write_text(folder / CARD, card(name, content, record, target, PICTURE if drawn else None, licence))
        names = [name for name in FILES if (folder / name).is_file()]
        write_text(folder / SUMS, "".join(f"{digest(folder / name)}  {name}\n" for name in names))
        if isinstance(place, Repository):
            if not force and hub.has(place, SUMS):
                _refuse_another(place, folder)
            hub.upload(place, folder, private, "A head with its card and checksums")
        else:
            _put(folder, place, [*names, SUMS], force)
    return [*names, SUMS]


def pull(target: str, folder: str | Path, force: bool = False) -> Path:
    """Fetch a shared head into a folder and return the path of its head file.

    Raises UserError where a file is missing, is not as SHA256SUMS has it, or is none of FILES; where the head is none;
    and where the folder has another file of that name, unless ``force``. Then nothing there was changed.
    """
    place, folder = _place_of(target), Path(folder)
    with TemporaryDirectory() as temporary:
        fetched = Path(temporary)
        _fetch(place, SUMS, fetched)
        sums = read_sums(fetched / SUMS, place)
        for name, expected in sums.items():
            _fetch(place, name, fetched)
            if digest(fetched / name) != expected:
                raise UserError(
                    f"{place}: {name} is not as its {SUMS} has it, damaged or changed; nothing of it was kept: "
                    "fetch it again, or ask its author."
                )
        head_file.read(fetched / HEAD)
        _put(fetched, folder, [*sums, SUMS], force)
    return folder / HEAD


def read_sums(path: Path, place: Path | Repository) -> dict[str, str]:
    """SHA-256 by file name. Raises UserError for a list that is none, names other files, or has no head."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        sums = {name: expected for expected, name in lines}
    except ValueError as error:
        raise UserError(f"{place}: its {SUMS} cannot be read; nothing of it was kept.") from error
    if others := sorted(set(sums) - set(FILES)):
        raise UserError(
            f"{place}: shares {others[0]!r} beside its head; a shared head is {', '.join(FILES)} and nothing else, and "
            "nothing of it was kept."
        )
    if HEAD not in sums:
        raise UserError(f"{place}: its {SUMS} has no {HEAD}; nothing of it was kept.")
    return {name: sums[name] for name in FILES if name in sums}


def listing(target: str) -> list[dict]:
    """``summary`` of each head with its ``place``: in a folder and the folders in it, of a hub's owner ("hub:owner") or
    in a collection ("hub:owner/slug"). Of a head without a card that says more, the place alone; of one that cannot be
    read, what is wrong, as ``damaged``.
    """
    if target.startswith(HUB):
        found = hub.models(target.removeprefix(HUB), TAG)
        return [{"place": str(place), **(facts[TAG] if is_summary(facts.get(TAG)) else {})} for place, facts in found]
    folder = Path(target)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with shared heads, or {HUB}OWNER.")
    found = [inner for inner in (folder, *sorted(folder.iterdir())) if (inner / SUMS).is_file()]
    return [{"place": str(inner), **_summary_of(inner)} for inner in found]


def _summary_of(folder: Path) -> dict:
    """What a shared head is, or what is wrong with it: one that is damaged hides no other."""
    try:
        return summary(head_file.read(folder / HEAD))
    except UserError as error:
        return {"damaged": str(error)}


def read(target: str) -> head_file.HeadFile:
    """The content of a head file, or of a shared head."""
    if not target.startswith(HUB):
        return head_file.read(_head_of(Path(target)))
    with TemporaryDirectory() as temporary:
        return head_file.read(pull(target, temporary))


def _place_of(target: str) -> Path | Repository:
    return hub.repository(target) if target.startswith(HUB) else Path(target)


def _head_of(source: Path) -> Path:
    path = source / HEAD if source.is_dir() else source
    if not path.is_file():
        raise UserError(f"{path} is not there; give the work dir of a finished run, or a head file.")
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: a head file ends in .safetensors; other files may hold programs and are not shared.")
    return path


def _record_of(path: Path, content: head_file.HeadFile) -> dict | None:
    """The record beside a head, where it is of this head: the same metrics, a NaN being null."""
    try:
        record = json.loads((path.parent / RESULTS).read_text(encoding="utf-8"))
        said, own = record["metrics"], {k: None if v != v else v for k, v in content.metrics.items()}
        return record if said == own else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_another(place: Repository, folder: Path) -> None:
    if read_sums(hub.fetch(place, SUMS), place)[HEAD] != digest(folder / HEAD):
        raise UserError(f"{place} shares another head already; give another name, or --force.")


def _put(source: Path, folder: Path, names: Sequence[str], force: bool) -> None:
    """Copy files into a folder, each whole or not at all; all are looked at before any is written."""
    for name in names:
        there = folder / name
        if there.exists() and not force and digest(there) != digest(source / name):
            raise UserError(f"{there} is there already and is another; give another folder, or --force.")
    for name in names:
        with atomic(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)


def _fetch(place: Path | Repository, name: str, folder: Path) -> None:
    if isinstance(place, Repository):
        found = hub.fetch(place, name)
    else:
        found = place / name
        if not found.is_file():
            raise UserError(f"{place} has no {name}; a shared head is what `heads push` makes.")
    shutil.copyfile(found, folder / name)
