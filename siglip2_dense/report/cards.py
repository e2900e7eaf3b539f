"""Of each protocol a card: what its numbers were measured with, all of them, on the way and per class."""

from __future__ import annotations

from itertools import count

from siglip2_dense.report.blocks import Bars, Cell, Charts, Column, Fold, Heading, Paragraph, Table
from siglip2_dense.report.charts import line_chart
from siglip2_dense.report.knobs import in_words, settings
from siglip2_dense.report.runs import (
    KINDS,
    Protocol,
    encoder_name,
    headline,
    history_of,
    own_settings,
    per_class_of,
    scores_of,
    short_name,
)
from siglip2_dense.report.tables import score_cell

FEW = 40  # classes
OF_RUN = ("seed", "device", "seconds", "images_per_second", "peak_memory_mib", "finished", "revision")
OF_ENCODER = ("fingerprint", "taps", "pooled", "precision", "features", "native_grid", "position_kernel", "parameters")


def card(protocol: Protocol) -> list:
    """The blocks of one protocol."""
    first = protocol.runs[0].record
    data = first["data"]
    things = ", ".join(dict.fromkeys(KINDS[kind].thing for kind in protocol.heads.values()))
    images = f"{data['images']:,} images" if isinstance(data.get("images"), int) else "an unknown number of images"
    runs = f"{len(protocol.runs)} {'run' if len(protocol.runs) == 1 else 'runs'}"
    return [
        Heading(f"{protocol.name}: {data['name']} {data['split']}, {things}", protocol.name.lower(), 3),
        Paragraph(f"{images}, {runs}.", "summary"),
        _scores(protocol),
        *_curves(protocol),
        *_classes(protocol),
        Fold("Protocol: what these numbers were measured with", [_settings({"data": data, **first["protocol"]})]),
        Fold("Runs and encoders", [_runs(protocol)]),
    ]


def _scores(protocol: Protocol) -> Table:
    """All scores of all runs."""
    by_run = [{(score.head, score.metric): score for score in scores_of(run, "")} for run in protocol.runs]
    keys = list(dict.fromkeys(key for scores in by_run for key in scores))
    several = len(protocol.heads) > 1
    columns = [Column("run"), *(Column(metric, head if several else "") for head, metric in keys)]
    rows = []
    for run, scores in zip(protocol.runs, by_run, strict=True):
        name = Cell(short_name(run), encoder_name(run))
        rows.append([name, *(score_cell(scores.get(key)) for key in keys)])
    return Table(columns, rows)


def _curves(protocol: Protocol) -> list:
    """For each head its headline on the way, a line for each run that was evaluated more than once."""
    charts = []
    for head, kind in protocol.heads.items():
        metrics = [score.metric for score in scores_of(protocol.runs[0], "") if score.head == head]
        metric = headline(kind, metrics)
        lines = {}
        for run in protocol.runs:
            points = history_of(run.record, head, metric)
            if len(points) > 1:
                name, encoder = short_name(run), encoder_name(run)
                lines[_free(name if encoder in name else f"{encoder}, {name}", lines)] = points
        if lines:
            title = f"{head}: {metric} on {protocol.runs[0].record['data']['split']}"
            charts.append((title, line_chart(lines, "step", metric)))
    return [Charts(charts)] if charts else []


def _classes(protocol: Protocol) -> list:
    """Bars of each run's classes; those of several runs, or of many classes, when asked for."""
    found = []
    for head in protocol.heads:
        for run in protocol.runs:
            for metric, values in list(per_class_of(run.record, head).items())[:1]:  # IoU or AP; the rest follow it
                title = f"{metric} of {len(values)} classes: {short_name(run)}"
                title = title if len(protocol.heads) == 1 else f"{head}, {title}"
                found.append(Fold(title, [Bars(metric, values)], open=len(protocol.runs) == 1 and len(values) <= FEW))
    return found


def _settings(tree: dict) -> Table:
    return Table([Column("knob"), Column("value")], [[Cell(place), Cell(value)] for place, value in settings(tree)])


def _runs(protocol: Protocol) -> Table:
    """What each run was, a column each: its encoder, and the settings that a sweep chose, may be its own."""
    rows = [[Cell("record"), *(Cell(str(run.path)) for run in protocol.runs)]]
    rows.append([Cell("encoder"), *(Cell(run.record["encoder"]["name"]) for run in protocol.runs)])
    rows.append([Cell("weights"), *(Cell(run.weights or "not known") for run in protocol.runs)])
    for part, keys in (("encoder", OF_ENCODER), ("run", OF_RUN)):
        for key in keys:
            if any(key in run.record[part] for run in protocol.runs):
                values = (_value(key, run.record[part].get(key)) for run in protocol.runs)
                rows.append([Cell(key.replace("_", " ")), *map(Cell, values)])
    for place, values in own_settings(protocol).items():
        rows.append([Cell(place), *(Cell(in_words(value)) for value in values)])
    rows.append([Cell("command"), *(Cell(in_words(run.record["run"].get("command"))) for run in protocol.runs)])
    return Table([Column("run"), *(Column(short_name(run)) for run in protocol.runs)], rows)


def _value(key: str, value) -> str:
    if key == "taps" and isinstance(value, list):
        taps = [tap if isinstance(tap, dict) else {} for tap in value]
        return ", ".join(f"{tap.get('block')}{'' if tap.get('norm') else ' without the norm'}" for tap in taps)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and key != "seed" else in_words(value)


def _free(label: str, taken) -> str:
    names = (label if number == 1 else f"{label} ({number})" for number in count(1))
    return next(name for name in names if name not in taken)
