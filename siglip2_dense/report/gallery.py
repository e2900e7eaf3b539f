"""What else a run has left: sweeps and pictures, small enough to stand in a page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

from siglip2_dense.errors import first_line
from siglip2_dense.report.blocks import Charts, Code, Heading, Paragraph, Picture, Pictures
from siglip2_dense.report.charts import line_chart
from siglip2_dense.report.runs import Run, encoder_name, heads_of, short_name

OF_HEAD = 2  # pictures of a head and run
WIDTH, HEIGHT, QUALITY = 1100, 1400, 78  # pixels at most; of WebP


def sweeps(runs: Sequence[Run]) -> tuple[list, list[str]]:
    """Blocks of the ``sweep.json`` beside the runs' records, and a sentence for each that cannot be read."""
    blocks, problems = [], []
    paths = dict.fromkeys(run.path.parent / "sweep.json" for run in runs)
    for number, path in enumerate((path for path in paths if path.is_file()), 1):
        try:
            blocks += _sweep(path, f"sweep-{number}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path} is no summary of a sweep of this version ({first_line(error)}); it is left out.")
    return blocks, problems


def pictures(runs: Sequence[Run]) -> tuple[list, list[str]]:
    """Some of the pictures beside each record, for each of its heads, and a sentence for each that is none."""
    blocks, problems = [], []
    for run in runs:
        folder = run.path.with_name(run.path.stem.replace("results", "pictures"))
        found = []
        for head in heads_of(run.record):
            files = sorted(folder.glob(f"*_{head}.png"))
            for file in files[:: max(1, len(files) // OF_HEAD)][:OF_HEAD]:
                try:
                    found.append(embedded(file, f"{head}: {file.stem.removesuffix(f'_{head}')}"))
                except (OSError, ValueError) as error:
                    problems.append(f"{file} is no picture ({first_line(error)}); it is left out.")
        if found:
            anchor = f"pictures-{len(blocks) // 2 + 1}"
            title = f"{short_name(run)}: {encoder_name(run)} on {run.record['data']['name']}"
            blocks += [Heading(title, anchor, 3), Pictures(found)]
    return blocks, problems


def embedded(file: Path | io.BytesIO, title: str) -> Picture:
    """A picture as WebP, no larger than a page needs it."""
    from PIL import Image

    with Image.open(file) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        picture.save(stream, "WEBP", quality=QUALITY)
    uri = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(title, uri, picture.size)


def _sweep(path: Path, anchor: str) -> list:
    from siglip2_dense.engine.sweep_report import panels_of, table

    summary = json.loads(path.read_text(encoding="utf-8"))
    panels, labels = panels_of(summary)
    name = f"{path.absolute().parent.name}: {summary['encoder']['name']}"
    selection = summary["selection"]
    said = "One setting, with its seeds."
    if selection:
        said = f"Chosen on {selection['split']} ({selection['images']} images)."
    charts = [
        (head, line_chart(lines, "learning rate", label, "log"))
        for (head, lines), label in zip(panels.items(), labels, strict=True)
    ]
    return [Heading(name, anchor, 3), Paragraph(said, "summary"), Charts(charts), Code(table(summary))]
