"""Scores in rows of encoders and columns of protocols, beside what is published of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from string import ascii_lowercase
from typing import NamedTuple

from siglip2_dense.published import PAPER, ROWS, Row
from siglip2_dense.report.blocks import BETTER, LEVEL, NONE, PUBLISHED, WORSE, Bullets, Cell, Column, Link, Table
from siglip2_dense.report.knobs import differences, in_short
from siglip2_dense.report.paper import TABLES, PaperTable, published
from siglip2_dense.report.runs import KINDS, Protocol, Run, Score, encoder_name, headline, scores_of, short_name

DIGITS = {"recall": 4, "silog": 2}  # of a part among degrees, and of a per cent among metres
Place = tuple[int, str, str]  # a table's column, and in it one of ours: a protocol's name and a head's
Placed = tuple[int, Score]


class Line(NamedTuple):
    """One row: what is published of an encoder, if anything, and our scores on it, if any."""

    row: Row | None
    encoder: str
    scores: dict[Place, Score]
    again: bool = False  # whether the scores stand already in an earlier line, beside what another source says


class Found(NamedTuple):
    """A table with what belongs to it."""

    title: str
    anchor: str
    summary: str
    blocks: list


def paper_tables(protocols: Sequence[Protocol]) -> tuple[list[Found], list[Score]]:
    """The paper's tables with our scores, and the scores of heads that belong into none of them."""
    left = [score for protocol in protocols for run in protocol.runs for score in scores_of(run, protocol.name)]
    found = []
    for table in TABLES:
        here = [(number, score) for score in left for number, one in enumerate(table.columns) if one.has(score)]
        taken = {(id(score.run.record), score.head) for _, score in here}
        left = [score for score in left if (id(score.run.record), score.head) not in taken]
        found.append(_paper_table(table, here, protocols))
    return found, left


def other_tables(scores: Sequence[Score], protocols: Sequence[Protocol]) -> list[Found]:
    """A table for each data set and split, with the headline of each head."""
    metrics: dict[tuple, list[str]] = {}
    for score in scores:
        metrics.setdefault((id(score.run.record), score.head), []).append(score.metric)
    groups: dict[tuple[str, str], dict[str, list[Score]]] = {}
    for score in scores:
        if score.metric == headline(score.kind, metrics[id(score.run.record), score.head]):
            data, kind = score.run.record["data"], KINDS[score.kind]
            title = " in ".join(filter(None, (f"{kind.thing}, {score.metric}", kind.unit)))
            groups.setdefault((data["name"], data["split"]), {}).setdefault(title, []).append(score)
    found = []
    for i, ((name, split), columns) in enumerate(groups.items(), 1):
        titles = list(columns)
        things = ", ".join(dict.fromkeys(KINDS[own[0].kind].thing for own in columns.values()))
        here = [(number, score) for number, own in enumerate(columns.values()) for score in own]
        table, places = _table(titles, _lines(here, lambda run: [], ()), here, protocols)
        blocks = [table, *differences(titles, places, protocols)]
        found.append(Found(f"{name} {split}", f"data-{i}", f"{_count(here)} of {things}", blocks))
    return found


def score_cell(score: Score | None) -> Cell:
    """A score with its interval, two decimals of per cents and degrees and four of metres and parts."""
    if score is None:
        return Cell()
    digits = DIGITS.get(score.metric.partition("_")[0], KINDS[score.kind].digits)
    value, *ends = (None if x is None else f"{x:.{digits}f}" for x in (score.value, *(score.interval or ())))
    return Cell(NONE if value is None else value, f"[{', '.join(ends)}]" if ends else "")


def _paper_table(table: PaperTable, here: list[Placed], protocols: Sequence[Protocol]) -> Found:
    rows = [row for row in ROWS if row.model == table.model]
    lines = _lines(here, lambda run: published(run, table.model), rows)
    titles, keys = [one.title for one in table.columns], [one.key for one in table.columns]
    if not here:
        return Found(table.title, table.anchor, "nothing measured", [])
    shown, places = _table(titles, lines, here, protocols, keys)
    verdicts = Counter(cell.kind for row in shown.rows for cell in row if cell.kind in (BETTER, LEVEL, WORSE))
    against = sum(verdicts.values())
    said = ", ".join(f"{verdicts[kind]} {kind}" for kind in (BETTER, LEVEL, WORSE))
    summary = f"{_count(here)}, {against} beside a published one"
    notes = Bullets([f"{mark}: {source}" for source, mark in _marks(lines).items()], "note")
    blocks = [shown, notes, *differences(titles, places, protocols)]
    return Found(table.title, table.anchor, f"{summary}: {said}" if against else summary, blocks)


def _count(here: list[Placed]) -> str:
    return f"{len(here)} {'score' if len(here) == 1 else 'scores'}"


def _lines(here: list[Placed], rows_of: Callable[[Run], list[Row]], rows: Sequence[Row]) -> list[Line]:
    """Rows of a table, those of the paper first, whether or not there is a score of ours."""
    encoders = _encoders(here)
    of_row: dict[str, list[Row]] = {label: rows_of(next(iter(scores.values())).run) for label, scores in encoders}
    lines = []
    for row in rows:
        own = [
            Line(row, label, scores, again=row is not of_row[label][0])
            for label, scores in encoders
            if row in of_row[label]
        ]
        lines += own or ([Line(row, row.encoder, {})] if row.source.startswith(f"{PAPER},") else [])
    return lines + [Line(None, label, scores) for label, scores in encoders if not of_row[label]]


def _encoders(here: list[Placed]) -> list[tuple[str, dict[Place, Score]]]:
    """The scores by encoder, with its name; further seeds, and further runs under one protocol, are further rows.

    Weights decide which encoder it is, whatever its name.
    """
    stacks: dict[tuple, list[dict[Place, Score]]] = {}
    runs: dict[int, dict[Place, Score]] = {}
    for number, score in here:
        runs.setdefault(id(score.run.record), {})[number, score.protocol, score.head] = score
    for scores in runs.values():
        run = next(iter(scores.values())).run
        encoder = run.record["encoder"]
        key = (encoder_name(run), encoder.get("fingerprint"))
        stack = stacks.setdefault(key, [])
        free = (line for line in stack if not line.keys() & scores.keys() and _seed(line) == _seed(scores))
        if (line := next(free, None)) is None:
            stack.append(scores)
        else:
            line.update(scores)
    names = Counter(name for name, _ in stacks)
    found = []
    for (name, fingerprint), stack in stacks.items():
        label = f"{name}, weights {str(fingerprint)[:8]}" if names[name] > 1 else name
        found += zip(_numbered(label, stack), stack, strict=True)
    return found


def _numbered(label: str, stack: list[dict[Place, Score]]) -> list[str]:
    """A name for each of several rows of one encoder: its seed, else its work dir."""
    if len(stack) == 1:
        return [label]
    seeds = list(map(_seed, stack))
    if len(set(seeds)) == len(seeds):
        return [f"{label}, seed {seed}" for seed in seeds]
    names = (short_name(next(iter(line.values())).run) for line in stack)
    return [name if label in name else f"{label}, {name}" for name in names]


def _seed(line: dict[Place, Score]) -> str:
    return str(next(iter(line.values())).run.record["run"].get("seed"))


def _table(
    titles: Sequence[str], lines: list[Line], here: list[Placed], protocols: Sequence[Protocol], keys: Sequence = ()
) -> tuple[Table, list[Place]]:
    """keys: of the published scores, for each column; without them there is nothing beside ours."""
    by_name = {protocol.name: protocol for protocol in protocols}
    order = list(by_name)
    places = sorted(
        dict.fromkeys((number, score.protocol, score.head) for number, score in here),
        key=lambda place: (place[0], order.index(place[1]), place[2]),
    )
    columns = [Column("encoder")]
    for number, title in enumerate(titles):
        if keys:
            columns.append(Column("published", title))
        for _, protocol, head in (place for place in places if place[0] == number):
            link = Link(protocol, f"#{protocol.lower()}")
            several = len(by_name[protocol].heads) > 1
            columns.append(Column([link, f" {head}"] if several else link, title, in_short(by_name[protocol], head)))
            if keys:
                columns.append(Column(f"gap {protocol}", title))
    marks = _marks(lines)
    rows = []
    for line in lines:
        cells = [_name(line, marks)]
        for number, _ in enumerate(titles):
            known = line.row.scores.get(keys[number]) if keys and line.row else None
            if keys:
                cells.append(Cell(NONE if known is None else str(known), kind=PUBLISHED))
            for place in (place for place in places if place[0] == number):
                score = None if line.again and known is None else line.scores.get(place)
                cells.append(score_cell(score))
                if keys:
                    cells.append(_gap(score, known))
        rows.append(cells)
    return Table(columns, rows), places


def _name(line: Line, marks: dict[str, str]) -> Cell:
    return Cell(line.encoder, "" if line.row is None else f"{line.row.printed} ({marks[line.row.source]})")


def _marks(lines: list[Line]) -> dict[str, str]:
    """A letter for each source."""
    sources = dict.fromkeys(line.row.source for line in lines if line.row)
    return dict(zip(sources, ascii_lowercase, strict=False))


def _gap(score: Score | None, known: float | None) -> Cell:
    """Ours less the published: level where that is in our interval."""
    if score is None or known is None or score.value is None:
        return Cell()
    gap = score.value - known
    low, high = score.interval or (score.value, score.value)
    better = (gap > 0) == KINDS[score.kind].more_is_better
    verdict = LEVEL if low <= known <= high else BETTER if better else WORSE
    return Cell(f"{gap:+.{KINDS[score.kind].digits}f}", verdict, verdict)
