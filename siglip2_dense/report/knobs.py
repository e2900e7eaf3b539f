"""Protocols in words: all that a number was measured with, and in what two of them differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from siglip2_dense.report.blocks import Bullets, Cell, Column, Fold, Link, Table
from siglip2_dense.report.runs import Protocol, knobs

SHOWN = 160  # characters of a setting
NAMED = 12  # knobs in a sentence; the table has all
MANY = 8  # items of a list that are written out


def differences(titles: Sequence[str], places: Sequence[tuple[int, str, str]], protocols: Sequence[Protocol]) -> list:
    """Why scores of one set stand in several columns: the knobs by name, and their values when asked for.

    titles: of a table's columns; places: (column, protocol, head).
    """
    known = {protocol.name: protocol for protocol in protocols}
    groups: dict[tuple[str, ...], list[str]] = {}
    for number, title in enumerate(titles):
        names = tuple(dict.fromkeys(place[1] for place in places if place[0] == number))
        if len(names) > 1:
            groups.setdefault(names, []).append(title)
    items, folds = [], []
    for names, of in groups.items():
        own = [known[name] for name in names]
        found = _table_of(own)
        where = f"{', '.join(of)}: " if len(of) < len(titles) else ""
        said = [str(row[0].words) for row in found.rows]
        more = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
        said = f" have columns of their own; they differ in {', '.join(said[:NAMED])}{more}."
        items.append([where, *_links(own), said])
        folds.append(Fold(f"{where}{', '.join(names)} side by side", [found]))
    return [Bullets(items, "note"), *folds] if items else []


def in_short(protocol: Protocol, head: str) -> str:
    """What a column is of, in a few words: the head and how long it was trained."""
    said = protocol.runs[0].record["protocol"]
    parts, steps = said["heads"][head], (said.get("optimisation") or {}).get("iterations")
    kind = parts["head"].get("type") if isinstance(parts.get("head"), Mapping) else None
    return ", ".join(filter(None, (kind, f"{steps:,}\N{NO-BREAK SPACE}steps" if isinstance(steps, int) else None)))


def settings(tree: Mapping, where: str = "") -> Iterator[tuple[str, str]]:
    """(place, value) of all settings, in words; a part that names its type is one setting."""
    for key, value in tree.items():
        place = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping) and value and "type" not in value:
            yield from settings(value, place)
        else:
            yield place, in_words(value)


def in_words(value) -> str:
    """A setting as a person would write it, and not too long."""
    text = _words(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _words(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value[:12] if re.fullmatch("[0-9a-f]{64}", value) else value
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}={_words(item)}" for key, item in value.items() if key != "type")
        return f"{value['type']}({inside})" if "type" in value else f"{{{inside}}}"
    if isinstance(value, (list, tuple)):
        steps = any(isinstance(item, Mapping) for item in value)
        shown = [_words(item) for item in (value if steps or len(value) <= MANY else value[:3])]
        more = f", … ({len(value)})" if len(shown) < len(value) else ""
        return (" → " if steps else ", ").join(shown) + more if value else "none"
    return str(value)


def _table_of(protocols: Sequence[Protocol]) -> Table:
    """The knobs in which any of the protocols differs from the first, a column for each."""
    first, *others = protocols
    found = [knobs(first.runs[0], other.runs[0]) for other in others]
    rows = []
    for place in sorted(set().union(*found)):
        own = next(pair[place][0] for pair in found if place in pair)
        values = (own, *(pair.get(place, (own, own))[1] for pair in found))
        rows.append([Cell(place), *(Cell(in_words(value)) for value in values)])
    return Table([Column("knob"), *(Column(link) for link in _links(protocols, ""))], rows)


def _links(protocols: Sequence[Protocol], between: str = ", ") -> list:
    found = []
    for protocol in protocols:
        found += [between] if found and between else []
        found.append(Link(protocol.name, f"#{protocol.name.lower()}"))
    return found
