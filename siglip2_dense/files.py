"""Files that are never half written, and tensors that are never unpickled with code."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siglip2_dense.errors import UserError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes the name only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def load_tensors(path: str | Path) -> dict:
    """The content of a ``.safetensors``, ``.pth`` or ``.pt`` file on the CPU.

    Raises UserError when there is no such file, it is truncated, or it holds anything but plain data.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: truncated or not a file of tensors ({_first_line(error)}); fetch or save it again."
        ) from error
    except Exception as error:  # pickle.UnpicklingError, and whatever else a hostile file raises
        raise UserError(
            f"{path}: another kind of file, or it holds more than plain tensors, so that it is not loaded; give a file "
            "of tensors alone."
        ) from error


def _first_line(error: Exception) -> str:
    """Of a message that goes on with advice to programmers."""
    return str(error).strip().partition("\n")[0].partition(". ")[0]
