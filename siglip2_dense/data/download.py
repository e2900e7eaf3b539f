"""Archives from the network to the disk: downloads that go on where they ended, unpacking that is all or nothing."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PureWindowsPath
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic, digest

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
BAR = dict(unit="B", unit_scale=True, unit_divisor=1024)


def fetch(
    url: str, path: str | Path, size: int | None = None, checksum: str | None = None, algorithm: str = "md5"
) -> Path:
    """Download to ``path``; what has come so far is in PATH.part, which takes the name once its checksum agrees.

    A file that is there already is kept. Its checksum is computed again each time: somebody may have placed it by hand,
    and a note beside it that it once was right could not tell. size: bytes, about, where the server does not say.
    Raises UserError when the network, the disk or the checksum fails; all but a wrong file is kept to go on from.
    """
    path = Path(path)
    if path.is_file():
        if checksum and (found := digest(path, algorithm)) != checksum:
            raise UserError(
                f"{path}: its {algorithm} is {found}, expected {checksum}; it is damaged or another file. "
                "Remove it and run the command again."
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    _download(url, part, size)
    if checksum and (found := digest(part, algorithm)) != checksum:
        part.unlink()
        raise UserError(
            f"{url}: the file that came has the {algorithm} {found}, expected {checksum}, and was deleted. Run the "
            f"command again; if this happens twice, get the file from elsewhere and place it as {path}."
        )
    os.replace(part, path)
    return path


def unpack(archive: str | Path, folder: str | Path, inside: str = ".") -> None:
    """What a zip or tar archive, compressed or not, holds in its folder ``inside`` becomes ``folder``.

    Everything is unpacked beside ``folder`` first, so that a half unpacked one is never there.
    Raises UserError for an archive that is damaged or would write elsewhere, and when ``folder`` holds files already.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files already; move them away or choose another folder.")
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of an attempt that was killed
    temporary.mkdir(parents=True)
    try:
        with _damage_is_named(archive):
            (_unpack_zip if zipfile.is_zipfile(archive) else _unpack_tar)(archive, temporary)
        if not (temporary / inside).is_dir():
            raise UserError(f"{archive} has no folder {inside}: it is another archive; fetch the right one.")
        os.replace(temporary / inside, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpack_below(archive: Path, root: Path, below: str, inside: str = ".") -> None:
    """``unpack`` to the folder ``below`` of a root that is made of several archives."""
    unpack(archive, root / below, inside)


def unpack_files(archive: Path, root: Path, files: Mapping[str, str]) -> None:
    """Of a zip archive these files alone; files: of each, the folder below the root that it goes to.

    Raises UserError for an archive that is damaged or has not all of them.
    """
    with _damage_is_named(archive), zipfile.ZipFile(archive) as opened:
        if missing := [name for name in files if name not in opened.namelist()]:
            raise UserError(f"{archive} has no file {missing[0]}: it is another archive; fetch the right one.")
        for name, folder in files.items():
            _require_space(archive.parent, opened.getinfo(name).file_size)
            path = root / folder / Path(name).name
            with opened.open(name) as stream, atomic(path) as temporary, open(temporary, "wb") as file:
                shutil.copyfileobj(stream, file, BLOCK)


@contextmanager
def open_tar(archive: str | Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, compressed or not, to be read once from front to back, with a progress bar."""
    archive = Path(archive)
    with (
        _damage_is_named(archive),
        open(archive, "rb") as file,
        tqdm.wrapattr(file, "read", total=archive.stat().st_size, desc=f"reading {archive.name}", **BAR) as stream,
        tarfile.open(fileobj=stream, mode="r|*", bufsize=BLOCK) as tar,
    ):
        yield tar


def _unpack_tar(archive: Path, folder: Path) -> None:
    _require_space(folder, archive.stat().st_size)
    with open_tar(archive) as tar:
        for member in tar:
            tar.extract(member, folder, filter="data")


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        size = sum(member.file_size for member in members)
        _require_space(folder, size)
        with tqdm(total=size, desc=f"unpacking {archive.name}", **BAR) as bar:
            for member in members:
                name = PureWindowsPath(member.filename)  # takes both slashes
                if name.anchor or ".." in name.parts:
                    raise zipfile.BadZipFile(f"{member.filename!r} is outside the destination")
                opened.extract(member, folder)
                bar.update(member.file_size)


@contextmanager
def _damage_is_named(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(
            f"{archive}: damaged, or not an archive that is safe to unpack ({error}); remove it and fetch it again."
        ) from error


def _download(url: str, part: Path, size: int | None) -> None:
    """Complete ``part``, trying again as long as each attempt brings something."""
    while True:
        before = _length(part)
        try:
            return _attempt(url, part, size)
        except (OSError, HTTPException) as error:  # urllib's errors and timeouts are OSErrors
            kept = _length(part)
            if kept <= before:
                raise UserError(
                    f"{url}: the download failed ({error}); {kept:,} bytes of it are in {part}. Run the command again "
                    f"to go on from there, or get the file by other means and place it as {part.with_suffix('')}."
                ) from error


def _attempt(url: str, part: Path, size: int | None) -> None:
    have = _length(part)
    headers = {"User-Agent": "siglip2_dense"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # 416: there is nothing from this byte on
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.unlink()
        return _attempt(url, part, size)
    with response:
        resumed = response.status == 206
        have = have if resumed else 0  # some servers send everything from the start
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _require_space(part.parent, (total or size or 0) - have)
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(initial=have, total=total or size, desc=f"fetching {part.stem}", **BAR) as bar,
        ):
            while block := response.read1(BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and _length(part) < total:  # http.client ends a cut answer without an error
        raise ConnectionError(f"the connection ended after {_length(part):,} of {total:,} bytes")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder}: {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; make room, or give another "
            "place with --root or $SIGLIP2_DENSE_DATA."
        )
