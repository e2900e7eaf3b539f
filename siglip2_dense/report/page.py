"""Blocks as one HTML page that needs nothing from elsewhere: style, charts and pictures stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from siglip2_dense.report.blocks import (
    NONE,
    Bars,
    Bullets,
    Charts,
    Code,
    Fold,
    Heading,
    Link,
    Paragraph,
    Pictures,
    Table,
    Words,
)
from siglip2_dense.report.style import STYLE

# Paper cannot be clicked: what is folded goes along, but for the classes, which take pages.
SCRIPT = (
    "addEventListener('beforeprint',()=>document.querySelectorAll('details').forEach("
    "d=>{if(!d.querySelector('.bars'))d.open=true}))"
)


def page(blocks: Sequence) -> str:
    """HTML of a report, whole in itself; the first heading among the blocks is its title."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    parts = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<a href="#{escape(part.anchor)}">{escape(part.text.partition(":")[0])}</a>' for part in parts)
    body = "\n".join(map(_block, blocks))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<nav>{links}</nav>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _block(block) -> str:
    match block:
        case Heading():
            level, anchor = block.level, escape(block.anchor)
            return f'<h{level} id="{anchor}"><a href="#{anchor}">{escape(block.text)}</a></h{level}>'
        case Paragraph():
            return f"<p{_class(block.kind)}>{_words(block.words)}</p>"
        case Bullets():
            items = "".join(f"<li>{_words(words)}</li>" for words in block.items)
            return f"<ul{_class(block.kind)}>{items}</ul>"
        case Table():
            return _table(block)
        case Bars():
            return _bars(block)
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
        case Charts():
            figures = (f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in block.charts)
            return f'<div class="charts">{"".join(figures)}</div>'
        case Pictures():
            figures = (
                f'<figure><figcaption>{escape(one.title)}</figcaption><div class="wide"><img src="{one.uri}" '
                f'alt="{escape(one.title)}" width="{one.size[0]}" height="{one.size[1]}"></div></figure>'
                for one in block.pictures
            )
            return f'<div class="pictures">{"".join(figures)}</div>'
        case Fold():
            inside = "\n".join(map(_block, block.blocks))
            return f"<details{' open' if block.open else ''}><summary>{escape(block.title)}</summary>{inside}</details>"
    raise TypeError(f"no block: {block!r}")


def _table(table: Table) -> str:
    grouped = any(column.group for column in table.columns)
    head, starts = "", set()
    if grouped:
        number = 0
        for group, columns in groupby(table.columns, key=lambda column: column.group):
            span = len(list(columns))
            head += f'<th{_class("start" if number else "")} colspan="{span}" scope="colgroup">{escape(group)}</th>'
            starts.add(number)
            number += span
        head = f"<tr>{head}</tr>"
    names = (
        f'<th{_class("start" if number in starts and number else "")} scope="col">{_words(column.title)}'
        f"{_note(column.note)}</th>"
        for number, column in enumerate(table.columns)
    )
    rows = "".join(f"<tr>{''.join(_cell(cell, i, starts) for i, cell in enumerate(row))}</tr>" for row in table.rows)
    return f'<div class="wide"><table><thead>{head}<tr>{"".join(names)}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(cell, number: int, starts: set[int]) -> str:
    note = _note(cell.note)
    if number == 0:
        return f'<th scope="row">{_words(cell.words)}{note}</th>'
    kinds = " ".join(filter(None, (cell.kind, "start" if number in starts else "")))
    return f"<td{_class(kinds)}>{_words(cell.words)}{note}</td>"


def _note(note: str) -> str:
    return f" <small>{escape(note)}</small>" if note else ""


def _bars(bars: Bars) -> str:
    """A line for each name; what has no value comes last."""
    order = sorted(bars.values.items(), key=lambda item: (item[1] is None, -(item[1] or 0)))
    rows = (
        f'<li><span class="name">{escape(name)}</span>'
        f'<span class="track"><span class="bar" style="width:{min(max(value or 0, 0), 100):.2f}%"></span></span>'
        f'<span class="value">{NONE if value is None else f"{value:.2f}"}</span></li>'
        for name, value in order
    )
    return f'<ol class="bars">{"".join(rows)}</ol>'


def _words(words: Words) -> str:
    parts = [words] if isinstance(words, (str, Link)) else words
    return "".join(_link(part) if isinstance(part, Link) else escape(part) for part in parts)


def _link(link: Link) -> str:
    return f'<a href="{escape(link.target)}">{escape(link.text)}</a>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
