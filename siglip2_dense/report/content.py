"""The report as blocks, in the order in which it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from siglip2_dense.errors import UserError
from siglip2_dense.report.blocks import Bullets, Heading, Link, Paragraph
from siglip2_dense.report.cards import card
from siglip2_dense.report.features import feature_pictures
from siglip2_dense.report.gallery import pictures, sweeps
from siglip2_dense.report.paper import in_order
from siglip2_dense.report.runs import by_protocol, find
from siglip2_dense.report.tables import Found, other_tables, paper_tables

PAPER = Link("SigLIP 2 paper", "https://arxiv.org/abs/2502.14786")


def content(paths: Sequence[str | Path], image: str | Path | None = None) -> tuple[list, list[str]]:
    """The blocks, and a sentence for each thing that was left out because it could not be read.

    image: to show what each encoder makes of it. Raises UserError when nothing could be read, or the image cannot.
    """
    runs, problems = find(paths)
    if not runs:
        raise UserError(f"there is no record to report: {' '.join(problems)}")
    runs = in_order(runs)
    protocols = by_protocol(runs)
    of_paper, left = paper_tables(protocols)
    others = other_tables(left, protocols)
    swept, unread = sweeps(runs)
    shown, spoilt = pictures(runs)
    drawn, missing = feature_pictures(runs, image) if image else ([], [])
    problems = [*problems, *unread, *spoilt, *missing]
    blocks = [
        Heading(f"{_count(len(runs), 'record')} under {_count(len(protocols), 'protocol')}", "top", 1),
        Paragraph(
            [
                "Scores beside those of the ", PAPER, ". Numbers under one heading (P1, P2, …) were measured under one "
                "protocol, on the same data: only these can be compared. In brackets: 95 % of what other images of the "
                "same kind would give. A gap is our score less the published one; it is level where the published "
                "score lies within the brackets.",
            ]
        ),
        Bullets([*(_line(found) for found in [*of_paper, *others])], "summary"),
    ]  # fmt: skip
    if problems:
        blocks += [Heading("Left out", "left-out"), Bullets(problems, "problem")]
    for found in of_paper:
        if found.blocks:
            blocks += [Heading(found.title, found.anchor), Paragraph(f"{found.summary}.", "summary"), *found.blocks]
    if others:
        blocks.append(Heading("Other data" if len(others) < len([*of_paper, *others]) else "Scores", "other-data"))
    for found in others:
        blocks += [Heading(found.title, found.anchor, 3), Paragraph(f"{found.summary}.", "summary"), *found.blocks]
    blocks.append(Heading("Protocols", "protocols"))
    for protocol in protocols:
        blocks += card(protocol)
    if swept:
        blocks += [Heading("Sweeps", "sweeps"), *swept]
    if shown:
        blocks += [Heading("Pictures", "pictures"), *shown]
    if drawn:
        blocks += [Heading("Features", "features"), *drawn]
    return blocks, problems


def _line(found: Found) -> list:
    name = Link(found.title, f"#{found.anchor}") if found.blocks else found.title
    return [name, f": {found.summary}"]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
