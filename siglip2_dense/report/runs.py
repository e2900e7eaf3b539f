"""The records that are reported: found in work dirs, checked, and taken apart into scores and protocols."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from siglip2_dense import records
from siglip2_dense.compare import column, differing
from siglip2_dense.errors import UserError

ZERO_SHOT, UNKNOWN = "ZeroShot", "Unknown"


class Kind(NamedTuple):
    """What is reported of heads that do one thing."""

    metric: str  # that stands for all
    digits: int
    more_is_better: bool
    unit: str
    thing: str


KINDS = {  # by the task of a head
    "Segmentation": Kind("mIoU", 2, True, "%", "segmentation"),
    "OpenVocabulary": Kind("mIoU_labelled", 2, True, "%", "segmentation by names"),
    ZERO_SHOT: Kind("mIoU_labelled", 2, True, "%", "segmentation by names, without training"),
    "Depth": Kind("rmse", 4, False, "", "depth"),
    "Normals": Kind("rmse", 2, False, "degrees", "normals"),
    "Detection": Kind("AP", 2, True, "%", "detection"),
    UNKNOWN: Kind("", 4, True, "", "a head of an unknown kind"),
}


class Run(NamedTuple):
    """A record, and what it does not say itself."""

    path: Path
    record: dict
    weights: str  # how the encoder's were asked for: "hub", "random" or a file's name; "" = not known
    encoder: dict  # its config; empty = not known


class Score(NamedTuple):
    """One number of a record."""

    run: Run
    protocol: str  # the name of its protocol in the report
    head: str
    kind: str  # a key of KINDS
    metric: str  # without the head's name
    value: float | None  # none where it was not a number
    interval: tuple[float, float] | None  # 95 %


class Protocol(NamedTuple):
    """Records that may stand in one column."""

    name: str
    runs: list[Run]

    @property
    def heads(self) -> dict[str, str]:
        return heads_of(self.runs[0].record)


def find(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """The records of work dirs (all their ``results*.json``) or record files, and a sentence for each that is none.

    A record that says what another one in its folder says already, of the same test of the same head, is left out.
    """
    runs, problems = [], []
    for path in map(Path, paths):
        files = sorted(path.glob("results*.json")) if path.is_dir() else [path]
        if not files:
            problems.append(f"{path} has no results*.json; give the work dir of a finished run.")
        for file in files:
            try:
                run = _run(file)
            except UserError as error:
                problems.append(str(error))
                continue
            if not any(_same(run, other) for other in runs):
                runs.append(run)
    return runs, problems


def by_protocol(runs: Sequence[Run]) -> list[Protocol]:
    """The records in groups that may stand in one column, by the rule that ``compare`` has."""
    groups: list[tuple[dict, list[Run]]] = []
    for run in runs:
        shared = column(run.record)
        for other, members in groups:
            if shared == other:
                members.append(run)
                break
        else:
            groups.append((shared, [run]))
    return [Protocol(f"P{number}", members) for number, (_, members) in enumerate(groups, 1)]


def knobs(a: Run, b: Run) -> dict[str, tuple]:
    """{knob: (of a, of b)} in which the data and protocols of two records differ; a missing one is none."""
    sides = (column(run.record) for run in (a, b))
    return differing(*({"data": side["data"], **side["selection"], **side["protocol"]} for side in sides))


def own_settings(protocol: Protocol) -> dict[str, tuple]:
    """{knob: its value for each run} of what may differ within a column: the settings that a sweep has chosen."""
    first, *others = (run.record["protocol"] for run in protocol.runs)
    places = sorted({place for other in others for place in differing(first, other)})
    return {place: tuple(_at(run.record["protocol"], place) for run in protocol.runs) for place in places}


def heads_of(record: Mapping) -> dict[str, str]:
    """{head: kind} of a record."""
    heads = record["protocol"]["heads"]
    return {name: _kind(one, _metrics(record, name)) for name, one in heads.items()}


def scores_of(run: Run, protocol: str) -> list[Score]:
    """All numbers of a record."""
    found = []
    for head, kind in heads_of(run.record).items():
        for metric, value in _metrics(run.record, head).items():
            interval = _dict(run.record.get("intervals")).get(_flat(run.record, head, metric))
            found.append(Score(run, protocol, head, kind, metric, _number(value), _pair(interval)))
    return found


def headline(kind: str, metrics: Sequence[str]) -> str:
    """The metric that stands for a head: the published one, where the record has it."""
    for name in (KINDS[kind].metric, "mIoU"):
        if name in metrics:
            return name
    return metrics[0]


def history_of(record: Mapping, head: str, metric: str) -> list[tuple[int, float, None]]:
    """(step, value, no bar) of each evaluation on the way."""
    name = _flat(record, head, metric)
    measured = [_dict(one) for one in record.get("history") or () if isinstance(one, dict)]
    points = [(one.get("step"), _number(_dict(one.get("metrics")).get(name))) for one in measured]
    return [(step, value, None) for step, value in points if isinstance(step, int) and value is not None]


def per_class_of(record: Mapping, head: str) -> dict[str, dict[str, float | None]]:
    """{metric: {class: value}} of a head, empty where it has no classes."""
    found = _dict(record.get("per_class"))
    if len(record["protocol"]["heads"]) > 1:
        found = _dict(found.get(head))
    return {metric: {name: _number(x) for name, x in _dict(values).items()} for metric, values in found.items()}


def encoder_name(run: Run) -> str:
    """With random weights an encoder is not the one whose name it has."""
    name = run.record["encoder"]["name"]
    return f"{name}, random weights" if run.weights.startswith("random") else name


def short_name(run: Run) -> str:
    """The work dir's name, and the record's where it is not the run's own."""
    folder = run.path.absolute().parent.name
    return folder if run.path.name == records.RECORD else f"{folder}/{run.path.stem}"


def _run(path: Path) -> Run:
    path, record = records.read(path)
    _check(path, record)
    encoder = _encoder(path.parent, record)
    return Run(path, record, _weights(encoder, record), encoder)


def _check(path: Path, record: dict) -> None:
    """Raise UserError unless the record has the shape that is read here."""
    parts = ("metrics", "encoder", "protocol", "data", "run")
    wrong = next((part for part in parts if not isinstance(record[part], dict)), None)
    if not wrong:
        heads = record["protocol"].get("heads")
        wanted = {
            "protocol.heads": isinstance(heads, dict) and heads and all(isinstance(x, dict) for x in heads.values()),
            "encoder.name": isinstance(record["encoder"].get("name"), str),
            "data.name": isinstance(record["data"].get("name"), str),
            "data.split": isinstance(record["data"].get("split"), str),
            "metrics": bool(record["metrics"]),
        }
        wrong = next((name for name, there in wanted.items() if not there), None)
    if not wrong:
        try:
            column(record)
        except (AttributeError, KeyError, TypeError, ValueError):
            wrong = "protocol"
    if wrong:
        raise UserError(f"{path} is no record of this version: its {wrong!r} is not what a run or a test writes.")
    for head in heads:
        if not _metrics(record, head):
            raise UserError(
                f"{path} has no score of its head {head!r}; its metrics are {', '.join(record['metrics'])}."
            )


def _same(run: Run, other: Run) -> bool:
    if run.path.absolute() == other.path.absolute():
        return True
    if run.path.absolute().parent != other.path.absolute().parent:
        return False
    said = [(column(one.record), one.record["metrics"], one.record["encoder"]) for one in (run, other)]
    return said[0] == said[1]


def _encoder(folder: Path, record: dict) -> dict:
    """How the encoder was asked for, as the head file beside a record has it; empty without a head of its own."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "head.safetensors", "pt") as stream:
            said = stream.metadata() or {}
        facts, config = (json.loads(said[key]) for key in ("encoder", "encoder_config"))
        return config if facts["fingerprint"] == record["encoder"].get("fingerprint") else {}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return {}


def _weights(encoder: dict, record: dict) -> str:
    """A record does not say where the weights came from: the head does, else the command line."""
    if encoder:
        return Path(str(encoder.get("weights", "hub"))).name
    try:
        words = shlex.split(str(record["run"].get("command", "")))
    except ValueError:
        return ""
    return Path(words[words.index("--weights") + 1]).name if "--weights" in words[:-1] else ""


def _at(tree, place: str):
    """The value at a place that ``differing`` named; none where there is none. Names may have points in them."""
    if isinstance(tree, list):
        tree = {str(number): item for number, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return None
    for key, value in tree.items():
        if place == key:
            return value
        if place.startswith(f"{key}."):
            return _at(value, place[len(key) + 1 :])
    return None


def _kind(head: Mapping, metrics: Mapping) -> str:
    kind = _dict(head.get("task")).get("type")
    if kind in KINDS:
        return kind
    return ZERO_SHOT if "templates" in head and "mIoU" in metrics else UNKNOWN


def _flat(record: Mapping, head: str, metric: str) -> str:
    return metric if len(record["protocol"]["heads"]) == 1 else f"{head}.{metric}"


def _metrics(record: Mapping, head: str) -> dict:
    """A head's numbers by their own names."""
    prefix = _flat(record, head, "")
    return {name.removeprefix(prefix): value for name, value in record["metrics"].items() if name.startswith(prefix)}


def _number(value) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _pair(value) -> tuple[float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or None in (found := tuple(map(_number, value))):
        return None
    return found


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}
