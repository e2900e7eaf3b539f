"""Writes the pages of docs/ from the figures that the benchmarks left in docs/figures."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from siglip2_dense.benchmark import recipes
from siglip2_dense.files import write_text

PAGES = {
    "results.md": (
        "Results",
        "What trained heads score on real data.",
        ("pretraining", "kitchen", "coco", "unseen", "overfit"),
    ),
    "knobs.md": (
        "Why is my number different?",
        "Published recipes side by side, from `configs/protocols/`, whose files say where each value is from; and what "
        "knobs are worth in which they differ. `siglip2-dense compare A B --knobs` lists those of two records.",
        ("knobs",),
    ),
    "performance.md": (
        "Performance",
        "Time and memory, both sides of each ratio in one run.",
        (
            "encoder",
            "throughput",
            "evaluate",
            "heads",
            "loss",
            "store",
            "sweep",
            "camvid",
            "views",
            "plan",
            "catseg",
            "owlvit",
        ),
    ),
}


OPTIONS = {"encoder": "--all-families "}


def page(title: str, lead: str, names: tuple[str, ...], figures: Path) -> str:
    """Markdown of one page; a benchmark without figures is named as not yet measured."""
    lines = [f"# {title}", "", f"{lead} Written by `make docs` from `docs/figures/`; nothing here is typed."]
    if "knobs" in names:
        lines += ["", "## The recipes", "", *recipes.table()]
    for name in names:
        what = import_module(f"siglip2_dense.benchmark.{name}").__doc__.strip()
        lines += [
            "",
            f"## {name}",
            "",
            what,
            "",
            f"`python tools/benchmark.py {name} {OPTIONS.get(name, '')}--json docs/figures/{name}.json`",
            "",
        ]
        path = figures / f"{name}.json"
        if not path.is_file():
            lines.append("Not measured yet.")
            continue
        found = json.loads(path.read_text())
        lines += ["| figure | value | target | |", "|---|---|---|---|"]
        for item in found["figures"]:
            target = "" if item["target"] is None else f"{'≤' if item['better'] == 'lower' else '≥'} {item['target']:g}"
            lines.append(f"| {item['name']} | {item['value']:.4g} | {target} | {item['detail']} |")
        for picture in sorted((figures / name).glob("*.jpg")):
            lines += ["", f"![{picture.stem.replace('_', ' ')}](figures/{name}/{picture.name})"]
        lines += ["", "Measured on: " + ", ".join(f"{key} {value}" for key, value in found["machine"].items()) + "."]
    return "\n".join(lines) + "\n"


def main(docs: str) -> None:
    for name, (title, lead, names) in PAGES.items():
        write_text(Path(docs) / name, page(title, lead, names, Path(docs) / "figures"))


if __name__ == "__main__":
    main(*sys.argv[1:])
