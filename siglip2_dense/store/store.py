"""One store: the files of its shards, each whole or not there, and what can be told of them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.errors import UserError, first_line
from siglip2_dense.files import digest as checksum
from siglip2_dense.files import size_text, write_text
from siglip2_dense.store.key import taps_of
from siglip2_dense.store.origins import Origin, compared
from siglip2_dense.store.shard import Shard, ShardWriter

MANIFEST = "manifest.json"
NOT_EXTRACTED = "not extracted"


@dataclass(frozen=True)
class Store:
    """The features of one data set, by one encoder, in a folder of their own: ``SPLIT-DIGEST/``.

    ``manifest.json`` says what they are of. Each view has its own shards, ``VIEW-NUMBER.safetensors``, of
    ``images_per_shard`` images but for the last. A shard is whole once its note, ``VIEW-NUMBER.json``, lies beside it,
    with its size and checksum, and those of the files that its images were read from; nothing else is shared, so that
    shards can be written in any order by anybody.
    """

    path: Path
    key: dict
    facts: EncoderFacts
    images_per_shard: int

    @property
    def images(self) -> int:
        return self.key["data"]["images"]

    @property
    def shards_per_view(self) -> int:
        return -(-self.images // self.images_per_shard)

    def order(self) -> np.ndarray:
        """The image (its index in the data set) at each position.

        Images of training lie mixed: neighbours are trained on together, and in their own order they are often alike.
        """
        if self.key["windows"] is not None:
            return np.arange(self.images)
        return _mixed(self.images)

    def positions(self, number: int) -> range:
        """What the shard of this number holds."""
        first = number * self.images_per_shard
        return range(first, min(first + self.images_per_shard, self.images))

    def held(self, number: int) -> list[int]:
        """The images of that shard, by their index in the data set."""
        return self.order()[self.positions(number)].tolist()

    def file(self, view: int, number: int) -> Path:
        return self.path / f"{view}-{number:05d}.safetensors"

    def write(
        self, view: int, number: int, content: ShardWriter, origins: Sequence[Origin] = (), versions: dict | None = None
    ) -> None:
        """origins: the files that its images were read from, image after image, as they were before that. versions: of
        the libraries that made it.

        Raises UserError when the disk does not take it, and for other images than the shard's; what was there stays.
        """
        from safetensors import SafetensorError

        path = self.file(view, number)
        wanted = self.held(number)
        if content.indices != wanted:
            raise UserError(
                f"{path} was to hold the images {wanted[:8]} … ({len(wanted)}) and was given {content.indices[:8]} … "
                f"({len(content.indices)}); a data set must give each sample the index that it was asked for."
            )
        try:
            path.with_suffix(".json").unlink(missing_ok=True)
            content.write(path)
            shutil.copymode(self.path / MANIFEST, path)  # safetensors lets nobody else read its files
            noted = [origin.note() for origin in origins]
            self._write_note(view, number, path.stat().st_size, checksum(path), versions or {}, noted)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # whole it may be, but nothing says so
            raise _refusal(path.parent, error) from error

    def _write_note(self, view: int, number: int, bytes: int, sha256: str, versions: dict, origins: list) -> None:
        note = dict(bytes=bytes, sha256=sha256, versions=versions, origins=origins)
        write_text(self.file(view, number).with_suffix(".json"), json.dumps(note) + "\n")

    def _note(self, view: int, number: int) -> dict:
        """The same read back; empty where there is none, or it is broken."""
        try:
            known = json.loads(self.file(view, number).with_suffix(".json").read_text())
            return {name: known[name] for name in ("bytes", "sha256", "versions", "origins")}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def problem(self, view: int, number: int, thorough: bool = False) -> str:
        """Why a shard cannot be used, or an empty string.

        The content is read when asked for (``thorough``), and when the file has changed since its checksum was taken.
        """
        path = self.file(view, number)
        note = path.with_suffix(".json")
        known = self._note(view, number)
        if not known:
            return f"{note.name} cannot be read" if note.exists() else NOT_EXTRACTED
        try:
            state = path.stat()
            if state.st_size != known["bytes"]:
                return f"truncated: {state.st_size} of {known['bytes']} bytes"
            if thorough or state.st_mtime_ns > note.stat().st_mtime_ns:
                if checksum(path) != known["sha256"]:
                    return "changed since it was written"
                with contextlib.suppress(OSError):  # where it may not be written
                    os.utime(note)
        except FileNotFoundError:
            return "gone"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return ""

    def changed(self, view: int, number: int, files: Callable[[int], Sequence[Path]]) -> str:
        """Which of the files that a whole shard was made of is another now, or an empty string.

        files: gives those of an image, by its index in the data set.
        """
        known = self._note(view, number)
        today = [path for index in self.held(number) for path in files(index)]
        problem, origins = compared(today, known.get("origins", []))
        if not problem and known and origins != known["origins"]:  # copied or touched: next time their times are known
            with contextlib.suppress(OSError):  # where it may not be written
                self._write_note(view, number, **{**known, "origins": origins})
        return problem

    def shards(self, views: int) -> list[tuple[int, int]]:
        """(view, number) of each file that the first ``views`` have."""
        return [(view, number) for view in range(views) for number in range(self.shards_per_view)]

    def problems(
        self, views: int = 1, files: Callable[[int], Sequence[Path]] | None = None
    ) -> dict[tuple[int, int], str]:
        """Those of them that are not there, not whole, or where ``files`` are given, of other files: and why."""
        found = {shard: self.problem(*shard) or (files and self.changed(*shard, files)) for shard in self.shards(views)}
        return {shard: problem for shard, problem in found.items() if problem}

    def versions(self, views: int) -> dict[str, set[str]]:
        """All versions of each library that made a whole shard of the first ``views``."""
        found = defaultdict(set)
        for shard in self.shards(views):
            for name, version in self._note(*shard).get("versions", {}).items():
                found[name].add(version)
        return found

    def missing(self, views: int = 1) -> list[tuple[int, int]]:
        """Those that are not there, or not whole."""
        return list(self.problems(views))

    def forget(self, view: int, number: int) -> None:
        """Have a shard extracted again."""
        try:
            self.file(view, number).with_suffix(".json").unlink(missing_ok=True)
        except OSError as error:
            raise _refusal(self.path, error) from error

    def use(self) -> None:
        """Remember that it was used now."""
        with contextlib.suppress(OSError):  # where it may not be written
            os.utime(self.path / MANIFEST)

    def views(self) -> int:
        """How many views have been begun, at least one."""
        return max((int(path.name.partition("-")[0]) for path in self.path.glob("*-*.safetensors")), default=0) + 1

    def open(self, view: int) -> list[Shard]:
        return [Shard(self.file(view, number)) for number in range(self.shards_per_view)]

    def describe(self) -> dict:
        """For a table: what it is of, how much there is of it."""
        begun = self.views()
        missing = len(self.missing(begun))
        data, taps = self.key["data"], taps_of(self.key)
        return {
            "store": self.path.name,
            "encoder": self.facts.name,
            "weights": self.facts.fingerprint[:12],
            "data": f"{data['name']} {data['split']}",
            "for": "training" if self.key["windows"] is None else f"evaluation, {_windows(self.key['windows'])}",
            "taps": " ".join(f"{tap.block}{'' if tap.norm else ' (no norm)'}" for tap in taps)
            + (" pooled" if self.key["pooled"] else "")
            + (" text space" if self.key["aligned"] else ""),
            "type": self.key["dtype"],
            "images": self.images,
            "views": begun,
            "size": size_text(folder_bytes(self.path)),
            "last used": time.strftime("%Y-%m-%d", time.localtime((self.path / MANIFEST).stat().st_mtime)),
            "complete": "yes" if not missing else f"{missing} of {begun * self.shards_per_view} files missing",
        }


def folder_bytes(path: Path) -> int:
    found = 0
    for file in path.iterdir():
        with contextlib.suppress(FileNotFoundError):  # half written a moment ago, and whole now
            found += file.stat().st_size
    return found


def _refusal(folder: Path, error: Exception) -> UserError:
    """Of a file that the disk does not take; safetensors has an error of its own, which quotes the system's."""
    words, number = str(error), getattr(error, "errno", None)
    if full := number == errno.ENOSPC or "No space left" in words:
        reason = "the disk is full"
    elif full := number == errno.EDQUOT or "quota exceeded" in words:
        reason = "the disk quota is used up"
    else:
        reason = f"no file can be written, {getattr(error, 'strerror', None) or first_line(error)}"
    remedy = "Free some space, or have less in the store" if full else "See to that"
    return UserError(
        f"{reason} ({folder}); what was extracted before is kept. {remedy}, and run the same command again: it goes on "
        "from there."
    )


@lru_cache(maxsize=4)
def _mixed(images: int) -> np.ndarray:
    order = np.random.default_rng(images).permutation(images)
    order.setflags(write=False)
    return order


def _windows(inference: dict) -> str:
    words = [inference["mode"], *(str(inference[key]) for key in ("crop", "stride") if key in inference)]
    return " ".join([*words, *(["flip"] if inference.get("flip") else [])])
