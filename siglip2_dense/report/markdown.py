"""Blocks as Markdown: tables and words. Charts and pictures are in the page alone."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from siglip2_dense.report.blocks import (
    NONE,
    Bars,
    Bullets,
    Cell,
    Charts,
    Code,
    Column,
    Fold,
    Heading,
    Link,
    Paragraph,
    Pictures,
    Table,
    Words,
)

MARKS = re.compile(r"([\\`*_{}\[\]<>|#~])")


def markdown(blocks: Sequence) -> str:
    return "\n\n".join(filter(None, map(_block, blocks))) + "\n"


def escaped(text: str) -> str:
    """Text that means itself, in a cell too."""
    return MARKS.sub(r"\\\1", " ".join(text.split()))


def _block(block) -> str:
    match block:
        case Heading():
            anchor = f'<a id="{html.escape(block.anchor)}"></a>\n\n' if block.level > 1 else ""
            return f"{anchor}{'#' * block.level} {escaped(block.text)}"
        case Paragraph():
            return _words(block.words)
        case Bullets():
            return "\n".join(f"- {_words(words)}" for words in block.items)
        case Table():
            return _table(block)
        case Bars():
            rows = [[Cell(name), Cell(NONE if x is None else f"{x:.2f}")] for name, x in block.values.items()]
            return _table(Table([Column("class"), Column(block.title)], rows))
        case Code():
            return f"```\n{block.text}\n```"
        case Fold():
            return f"<details><summary>{html.escape(block.title)}</summary>\n\n{markdown(block.blocks)}\n</details>"
        case Charts() | Pictures():
            return ""
    raise TypeError(f"no block: {block!r}")


def _table(table: Table) -> str:
    head = [
        " ".join(filter(None, (escaped(column.group), _words(column.title), escaped(column.note))))
        for column in table.columns
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in table.rows:
        lines.append([" ".join(filter(None, (_words(cell.words), escaped(cell.note)))) for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _words(words: Words) -> str:
    parts = [words] if isinstance(words, (str, Link)) else words
    return "".join(f"[{escaped(one.text)}]({one.target})" if isinstance(one, Link) else _kept(one) for one in parts)


def _kept(text: str) -> str:
    """Escaped, with the blanks at its ends that part it from a link."""
    return f"{' ' * text.startswith(' ')}{escaped(text)}{' ' * (text.endswith(' ') and bool(text.strip()))}"
