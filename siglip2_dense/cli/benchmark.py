"""Measure what the documentation claims: both sides of a ratio in one run, interleaved, medians."""

from __future__ import annotations

import argparse
from pathlib import Path

from siglip2_dense.errors import UserError

NAMES = (
    "camvid",
    "catseg",
    "coco",
    "encoder",
    "evaluate",
    "heads",
    "kitchen",
    "knobs",
    "loss",
    "overfit",
    "owlvit",
    "plan",
    "pretraining",
    "store",
    "sweep",
    "throughput",
    "unseen",
    "views",
)
EXAMPLES = """examples:
  siglip2-dense benchmark encoder --quick
  siglip2-dense benchmark store --json store.json
"""
WITH_PICTURES = ("coco", "kitchen", "overfit", "unseen")  # they leave pictures in the folder FILE without its .json


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--quick", action="store_true", help="the same ratios on less work, within a minute")
    parser.add_argument("--all-families", action="store_true", help="encoder: also one of each family of the catalogue")
    parser.add_argument("--json", metavar="FILE", help="also write the figures and the machine they are from")
    arguments = parser.parse_args(argv)
    if arguments.all_families and arguments.name != "encoder":
        raise UserError("--all-families is for the benchmark 'encoder' alone; leave it out.")

    from importlib import import_module

    from siglip2_dense.benchmark import measure

    more = (True,) if arguments.all_families else ()
    if arguments.json and arguments.name in WITH_PICTURES:
        more = (Path(arguments.json).with_suffix(""),)
    figures = import_module(f"siglip2_dense.benchmark.{arguments.name}").run(arguments.quick, *more)
    print(measure.table(figures))
    if arguments.json:
        measure.write(figures, arguments.json)
