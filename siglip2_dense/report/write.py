"""The two files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from siglip2_dense.files import write_text
from siglip2_dense.report.content import content
from siglip2_dense.report.markdown import markdown
from siglip2_dense.report.page import page

MARKDOWN, PAGE = "report.md", "report.html"


def write(
    paths: Sequence[str | Path], out: str | Path, image: str | Path | None = None
) -> tuple[Path, Path, list[str]]:
    """Report work dirs, or record files, as ``OUT/report.md`` and ``OUT/report.html``.

    image: a file, of which the page then shows the features, by each of the encoders.
    Returns the two paths, and a sentence for each thing that is left out because it cannot be read. Raises UserError
    when there is nothing to report.
    """
    blocks, problems = content(paths, image)
    found = Path(out) / MARKDOWN, Path(out) / PAGE
    write_text(found[0], markdown(blocks))
    write_text(found[1], page(blocks))
    return *found, problems
