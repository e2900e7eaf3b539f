"""Files that are never half written, and tensors that are never unpickled with code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

from siglip2_dense.errors import UserError, first_line


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


def cache_folder() -> Path:
    """Where a user's programs keep what can be had again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "siglip2_dense"


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def free_bytes(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free


def size_text(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def shards(path: str | Path) -> list[Path]:
    """The files that hold a model's tensors: ``path`` itself, or those that an ``*.index.json`` beside them lists.

    Raises UserError when the index cannot be read.
    """
    path = Path(path)
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        return sorted({path.with_name(name) for name in json.loads(path.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no index of files of tensors; delete it and fetch it again.") from error


def load_tensors(path: str | Path) -> dict:
    """The content of a ``.safetensors``, ``.npz``, ``.pth``, ``.pt`` or ``.bin`` file on the CPU, or of several files
    by their ``*.index.json``.

    Raises UserError when there is no such file, it is truncated, or it holds anything but plain data.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path.")
    if path.name.endswith(".index.json"):
        return {name: tensor for shard in shards(path) for name, tensor in load_tensors(shard).items()}
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            return _load_arrays(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, BadZipFile) as error:
        if "TorchScript" in str(error):
            raise UserError(
                f"{path}: a TorchScript archive, which holds a program beside its tensors; save those alone, with "
                "torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE), where you trust it."
            ) from error
        raise UserError(
            f"{path}: truncated or not a file of tensors ({first_line(error)}); delete it and fetch or save it again."
        ) from error
    except Exception as error:  # pickle.UnpicklingError, and whatever else a hostile file raises
        raise UserError(
            f"{path}: another kind of file, or it holds more than plain tensors, so that it is not loaded; give a file "
            "of tensors alone."
        ) from error


def _load_arrays(path: Path) -> dict:
    """NumPy's archive of arrays."""
    import numpy as np
    import torch

    with np.load(path, allow_pickle=False) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    for name, array in content.items():
        # NumPy has no bfloat16: JAX's is saved as two bytes without a type
        bfloat16 = array.dtype.kind == "V" and array.dtype.itemsize == 2
        content[name] = (
            torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if bfloat16 else torch.as_tensor(array)
        )
    return content
