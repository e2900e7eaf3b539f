"""Short names of encoders, and what is known of each. The facts are data, in ``catalogue.csv``."""

from __future__ import annotations

import csv
from ast import literal_eval
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from siglip2_dense.errors import UserError, nearest

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Entry:
    """One encoder. A timm model that is not in the catalogue has only the first three fields."""

    name: str
    family: str
    timm: str  # timm's architecture and tag
    model_args: dict = field(default_factory=dict)  # for timm, where its own arguments are not those of the weights
    weights: str = ""  # of "hub": "" = timm's tag, "open_clip:MODEL/TAG", or "package:DISTRIBUTION==VERSION:FILE"
    text: str = ""  # its text tower: "", "open_clip:MODEL/TAG", "siglip2:REPOSITORY" or "tipsv2:REPOSITORY"
    embed_dim: int = 0  # of the space shared with the texts
    resolution: int = 0  # pixels a side that it was trained at; of NaFlex, timm's choice
    patch: int = 0  # pixels per cell of the last map
    width: int = 0  # of the last map
    blocks: int = 0  # stages of a convolutional network
    pooled: str = ""  # its global vector: "map", "class" or "mean"
    prefix: tuple[int, int] = (0, 0)  # tokens before those of the image, and how many of them are registers
    mean: Triple | None = None  # of pixels in 0-1; none = as timm says
    std: Triple | None = None
    parameters: int = 0  # of the image tower with its pooling, without the projection to the text space
    licence: str = ""  # of the weights, as timm tags it
    tables: str = ""  # of the SigLIP 2 paper; * and ? mark what the paper leaves unsaid


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by short name."""
    text = files("siglip2_dense.encoders").joinpath("catalogue.csv").read_text(encoding="utf-8")
    return {row["name"]: _entry(row) for row in csv.DictReader(text.splitlines())}


def _entry(row: dict[str, str]) -> Entry:
    numbers = {key: int(row[key]) for key in ("embed_dim", "resolution", "patch", "width", "blocks", "parameters")}
    pixels = {key: tuple(map(float, row[key].split())) for key in ("mean", "std")}
    arguments = dict(argument.split("=") for argument in row["model_args"].split())
    return Entry(
        **{
            **row,
            **numbers,
            **pixels,
            "prefix": tuple(map(int, row["prefix"].split())),
            "model_args": {key: _value(value) for key, value in arguments.items()},
        }
    )


def _value(text: str) -> object:
    """A number, a truth value, or a word."""
    try:
        return literal_eval(text)
    except ValueError:
        return text


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
    return Entry(name, "timm", name)
