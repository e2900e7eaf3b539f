"""Records side by side: the knobs in which they differ, and each difference of scores with its interval, over drawings
of the images that all share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np

from siglip2_dense import records
from siglip2_dense.errors import UserError, first_difference, nearest
from siglip2_dense.metrics import rows
from siglip2_dense.metrics.paired import BLOCK, paired

BLOCKS = 10  # of drawings
KNOBS = ("encoder", "protocol", "data")  # what of a record decides its numbers, beside the seed
ASKED = ("taps", "pooled", "features")  # of a described encoder: what is asked of it and how it comes, and so settings
SHOWN = 40  # characters of a setting


class Tested(NamedTuple):
    """A record with its rows, by the names of its heads."""

    path: Path
    record: dict
    heads: dict[str, rows.Rows]


def differing_knobs(first: dict, other: dict) -> dict[str, tuple]:
    """{dotted name: (value in the first, in the other)} of all in which two records were made otherwise: encoder and
    its taps, protocol, data, seeds. A knob that one of them does not have is none there.
    """
    return differing(_knobs(first), _knobs(other))


def read(path: str | Path) -> Tested:
    """A record with its rows; path as ``records.read`` takes it.

    Raises UserError when it is no record, or its rows are not there or not its own.
    """
    path, record = records.read(path)
    where = rows.place(path)
    again = "run siglip2-dense test CONFIG HEAD --out FILE.json, which writes both anew, and compare that FILE.json."
    if not where.is_file() and any(name.rpartition(".")[2] == "AP" for name in record["metrics"]):
        raise UserError(
            f"{path} scores detections: precision is of ranks over all images and no sum over them, so it has no rows "
            "to compare by; compare the numbers themselves."
        )
    if not where.is_file():
        raise UserError(f"{path} has no rows of its images, looked for {where}; {again}")
    tested = Tested(path, record, rows.read(where))
    for name, head in tested.heads.items():
        for score, value in head.metric.of_rows().items():
            said = record["metrics"].get(_flat(name, score, tested.heads), math.inf)
            if not np.isclose(value, math.nan if said is None else said, rtol=1e-6, equal_nan=True):
                raise UserError(
                    f"{where} gives {score} {value:.6g}, {path} says {said}: they are of two tests; {again}"
                )
    return tested


def compare(paths: Sequence[str | Path], wanted: Sequence[str] = (), settings: bool = False) -> dict:
    """Every record against the first, as plain data; ``table`` says it to people.

    wanted: names of scores; by default all that the records share. settings: they are of one encoder under several
    settings, instead of several encoders under one protocol. Of encoders whose settings a sweep has chosen in one grid,
    by the same images, the chosen settings may differ.
    Raises UserError for records that differ in more than that, naming the first difference.
    """
    if not 2 <= len(paths) <= len(ascii_uppercase):
        raise UserError(f"{len(paths)} records to compare; give from 2 to {len(ascii_uppercase)}.")
    first, *others = tested = [read(path) for path in paths]
    for other in others:
        _check_records(first, other, settings)
    heads = _shared(tested)
    for name, sides in heads.items():
        for other, side in zip(others, sides[1:], strict=True):
            _check_rows(f"{other.path} cannot be compared with {first.path}", name, sides[0], side)
    return {
        "records": [{"path": str(one.path), "encoder": one.record["encoder"]["name"]} for one in tested],
        "data": first.record["data"],
        "differ": [differing_knobs(first.record, other.record) for other in others],
        "drawings": BLOCKS * BLOCK,
        "metrics": _scored(heads, _chosen(heads, wanted)),
    }


def table(found: dict) -> str:
    """What ``compare`` has found, for people."""
    data, lines = found["data"], knobs_table(found).splitlines()
    lines.insert(len(found["records"]), f"on the same {data['images']:,} images of {data['name']}, {data['split']}")
    cells = [("metric", "", "A", "other", "other - A", "95 %", "without 0")]
    for name, scores in found["metrics"].items():
        a = scores["first"]
        for letter, other in zip(ascii_uppercase[1:], scores["others"], strict=False):
            digits = 2 if max(abs(a), abs(other["value"])) >= 10 else 4  # per cents and degrees, or metres and parts
            low, high = other["interval"]
            cells.append((
                name, letter, f"{a:.{digits}f}", f"{other['value']:.{digits}f}", f"{other['difference']:+.{digits}f}",
                f"[{low:+.{digits}f}, {high:+.{digits}f}]", "yes" if other["excludes_0"] else "no",
            ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def compare_knobs(paths: Sequence[str | Path]) -> dict:
    """Of every record against the first, all knobs in which they differ, as plain data; ``knobs_table`` says it.

    Unlike ``compare`` it takes records of any tests, for it sets no scores side by side.
    """
    if not 2 <= len(paths) <= len(ascii_uppercase):
        raise UserError(f"{len(paths)} records to compare; give from 2 to {len(ascii_uppercase)}.")
    first, *others = found = [records.read(path) for path in paths]
    return {
        "records": [{"path": str(path), "encoder": record["encoder"]["name"]} for path, record in found],
        "differ": [differing_knobs(first[1], record) for _, record in others],
    }


def knobs_table(found: dict) -> str:
    """The records, and the knobs in which each differs from the first, for people."""
    lines = []
    for letter, one in zip(ascii_uppercase, found["records"], strict=False):
        lines.append(f"{letter}  {one['path']}  ({one['encoder']})")
    for letter, differ in zip(ascii_uppercase[1:], found["differ"], strict=False):
        lines.append(f"{letter} differs from A in{':' if differ else ' nothing that was set'}")
        lines += [f"    {knob}: {_short(a)} | {_short(b)}" for knob, (a, b) in differ.items()]
    return "\n".join(lines)


def _check_records(first: Tested, other: Tested, settings: bool) -> None:
    """Raise UserError unless they are of one test, and one thing differs between what was tested."""
    cannot, origin = f"{other.path} cannot be compared with {first.path}", "in the first"
    a, b = first.record, other.record
    shared, its = column(a), column(b)
    if difference := first_difference(shared["data"], its["data"], "data", origin):
        raise UserError(f"{cannot}: {difference}; test both on the same images, or see all knobs with --knobs.")
    difference = first_difference(shared["selection"], its["selection"], "protocol", origin) or first_difference(
        shared["protocol"], its["protocol"], "protocol", origin
    )
    if difference and not settings:
        raise UserError(
            f"{cannot}: {difference}; bring both under one protocol, or give --settings if it is settings on one "
            "encoder that you compare; --knobs shows all in which they differ."
        )
    encoders = [{key: value for key, value in one["encoder"].items() if key not in ASKED} for one in (a, b)]
    if settings and (difference := first_difference(*encoders, "encoder", origin)):
        raise UserError(f"{cannot}: {difference}; settings (--settings) are compared on one encoder.")


def column(record: dict) -> dict:
    """What records must have in common to stand in one column: the data, how settings were selected, and the protocol
    but for those settings.
    """
    selection, rest = _apart(record["protocol"])
    return {"data": record["data"], "selection": selection, "protocol": rest}


def _apart(protocol: dict) -> tuple[dict, dict]:
    """How settings were selected, and the protocol without what was."""
    selection = protocol.get("selection")
    grid = selection.get("grid", {}) if selection else {}
    rest = {key: value for key, value in protocol.items() if key != "selection"}
    heads, rates = rest["heads"], rest.get("peak_learning_rate", {})
    rest["heads"] = {name: _without(parts, grid.get(name, ())) for name, parts in heads.items()}
    rest["peak_learning_rate"] = {name: rate for name, rate in rates.items() if "lr" not in grid.get(name, ())}
    return {"selection": selection} if selection else {}, rest


def _without(parts: dict, swept: Sequence[str]) -> dict:
    """A described head without these settings of its own and its optimizer's; "head" is all of its own."""
    inner = {
        part: {key: value for key, value in parts.get(part, {}).items() if key not in swept}
        for part in ("head", "optim")
    }
    return {part: value for part, value in {**parts, **inner}.items() if part not in swept}


def _check_rows(cannot: str, name: str, own: rows.Rows, its: rows.Rows) -> None:
    """Raise UserError unless two heads were scored in one way, on the same images."""
    ways = [{"metric": type(s.metric).__name__, **s.metric.arguments, "classes": s.classes} for s in (own, its)]
    if difference := first_difference(*ways, f"heads.{name}", "in the first"):
        raise UserError(f"{cannot}: {difference}; score both in one way.")
    positions = [side.metric.rows()[0] for side in (own, its)]
    if not np.array_equal(*positions):
        lone = np.setxor1d(*positions)[0]
        raise UserError(f"{cannot}: only one of them has rows of image {lone}; test both on the same images.")


def _shared(tested: Sequence[Tested]) -> dict[str, list[rows.Rows]]:
    """The rows of each record by the names of the heads that all have; only heads need no common name."""
    first, *others = (one.heads for one in tested)
    if all(len(one.heads) == 1 for one in tested):
        return {next(iter(first)): [next(iter(one.heads.values())) for one in tested]}
    common = [name for name in first if all(name in other for other in others)]
    if not common:
        names = "; ".join(", ".join(one.heads) for one in tested)
        raise UserError(f"the records have no head in common: {names}. Compare records of the same heads.")
    return {name: [one.heads[name] for one in tested] for name in common}


def _flat(head: str, score: str, heads: Mapping) -> str:
    """How a record of these heads calls a head's score."""
    return score if len(heads) == 1 else f"{head}.{score}"


def _chosen(heads: dict[str, list[rows.Rows]], wanted: Sequence[str]) -> list[str]:
    """Of the names of all scores the wanted ones; a name without a head's is that of every head."""
    known = {_flat(name, score, heads): score for name, (own, *_) in heads.items() for score in own.metric.of_rows()}
    for name in wanted:
        if name not in {*known, *known.values()}:
            raise UserError(f"--metric {name}: {nearest(name, known, 'the records share ' + ', '.join(known) + '.')}")
    return [key for key, score in known.items() if not wanted or key in wanted or score in wanted]


def _scored(heads: dict[str, list[rows.Rows]], names: Sequence[str]) -> dict:
    """Per named score that of the first record, and of every other its own, the difference and the interval of that."""
    found = {
        _flat(name, score, heads): values
        for name, sides in heads.items()
        for score, values in paired([[side.metric] for side in sides], BLOCKS).items()
    }
    return {name: found[name] for name in names}


def _knobs(record: dict) -> dict:
    """Of a record all that may differ."""
    seeds = {key: record["run"].get(key) for key in ("seed", "head_seeds")}
    return {key: record[key] for key in KNOBS} | seeds


def differing(before, now, where: str = "") -> dict[str, tuple]:
    """{place: (before, now)} of all settings of two trees that differ; a missing one is none. Transforms and the like,
    of which both have as many, are called by their numbers.
    """
    if _are_parts(before) and _are_parts(now) and len(before) == len(now):
        before, now = ({str(number): item for number, item in enumerate(parts)} for parts in (before, now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return {} if before == now else {where: (before, now)}
    found = {}
    for key in sorted({*before, *now}):
        found |= differing(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    return found


def _are_parts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
