"""Embeddings of texts on disk, and what is known of towers and tokenizers without loading them.

A folder belongs to one tower with one tokenizer. Each batch of new texts becomes one file in it, which is never
changed: so there are few files, new texts cost only themselves, and processes that write at once cannot lose each
other's work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from siglip2_dense.files import atomic, cache_folder, write_text


def _home() -> Path:
    return cache_folder() / "text"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def stamp(files: Iterable[Path]) -> str:
    """What changes when one of the files is written anew."""
    there = sorted(file.resolve() for file in files if file.is_file())
    return " ".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in there)


def folder(key: dict) -> Path:
    """Where the embeddings of a tower and tokenizer lie; ``key`` is plain data that says all they depend on."""
    return _home() / _short(json.dumps(key, sort_keys=True))


def read(place: Path, texts: Sequence[str], out: Tensor) -> list[int]:
    """Fill the rows of ``out`` (N, D) whose texts (distinct) are stored; the positions that are still missing.

    A file that cannot be read, or holds something else, counts as not there.
    """
    missing = {text: position for position, text in enumerate(texts)}
    for path in sorted(place.glob("*.safetensors")):
        if not missing:
            break
        try:
            with safe_open(path, "pt") as file:
                stored = {text: row for row, text in enumerate(json.loads(file.metadata()["texts"])) if text in missing}
                if not stored:
                    continue
                vectors = file.get_tensor("embeddings")[list(stored.values())]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError):
            continue
        lengths = torch.linalg.vector_norm(vectors, dim=-1)
        if vectors.shape[1:] != out.shape[1:] or not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4):
            continue
        out[[missing.pop(text) for text in stored]] = vectors
    return sorted(missing.values())


def write(place: Path, texts: Sequence[str], vectors: Tensor) -> None:
    """Store unit vectors (N, D) of texts. A cache that cannot be written only costs time."""
    listed = json.dumps(list(texts), ensure_ascii=False)
    with suppress(OSError, SafetensorError), atomic(place / f"{_short(listed)}.safetensors") as temporary:
        save_file({"embeddings": vectors.contiguous()}, temporary, metadata={"texts": listed})


def recall(origin: str) -> dict | None:
    """What was remembered of a tower or tokenizer, or none."""
    try:
        known = json.loads((_home() / f"{_short(origin)}.json").read_text(encoding="utf-8"))
        return known if known.pop("origin") == origin else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def remember(origin: str, known: dict) -> None:
    with suppress(OSError):
        write_text(_home() / f"{_short(origin)}.json", json.dumps({"origin": origin, **known}))
