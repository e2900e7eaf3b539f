"""What a report consists of: Markdown and HTML say the same because both are made of this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NONE = "\N{EN DASH}"  # where there is no number
BETTER, WORSE, LEVEL, PUBLISHED = "better", "worse", "level", "published"


@dataclass(frozen=True)
class Link:
    """A word that leads to a heading of the report, or to a page elsewhere."""

    text: str
    target: str  # "#anchor", or an address


Words = str | Link | Sequence[str | Link]


@dataclass(frozen=True)
class Heading:
    text: str
    anchor: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    words: Words
    kind: str = ""  # "summary", "note" or "problem"


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Words]
    kind: str = ""


@dataclass(frozen=True)
class Cell:
    words: Words = ""
    note: str = ""  # smaller, behind it
    kind: str = ""  # BETTER, WORSE, LEVEL or PUBLISHED


@dataclass(frozen=True)
class Column:
    title: Words
    group: str = ""  # neighbours of one group have a common heading
    note: str = ""  # smaller, below it


@dataclass(frozen=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]  # the first cell names the row


@dataclass(frozen=True)
class Bars:
    """Values from 0 to 100, one for each name, longest first; Markdown has them as a table."""

    title: str
    values: dict[str, float | None]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Charts:
    """Charts side by side as far as there is room; Markdown leaves them out."""

    charts: Sequence[tuple[str, str]]  # (title, SVG)


@dataclass(frozen=True)
class Picture:
    title: str
    uri: str  # with the data in it
    size: tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Pictures:
    """Pictures below one another; Markdown leaves them out."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown when they are asked for."""

    title: str
    blocks: Sequence[Block]
    open: bool = False


Block = Heading | Paragraph | Bullets | Table | Bars | Code | Charts | Pictures | Fold
