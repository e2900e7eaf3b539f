"""Report finished runs beside the tables of the SigLIP 2 paper, as Markdown and as one page that needs nothing else.

Scores of one protocol, on the same data, stand in one column with their 95 % intervals; those of another have a column
of their own, and what differs is named. The page also has learning curves, classes, sweeps and pictures.
"""

from __future__ import annotations

import argparse
import sys

EXAMPLES = """examples:
  siglip2-dense report work_dirs/*
  siglip2-dense report work_dirs/probe_ade20k_* work_dirs/probe_pascal_* --out report
  siglip2-dense report work_dirs/* --features-of photo.jpg
  siglip2-dense report RUN/results_val.json OTHER/results_val.json
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work_dirs", nargs="+", metavar="WORK_DIR", help="of finished runs; or results*.json of tests")
    parser.add_argument("--out", metavar="DIR", default="report", help="where the two files go; default report")
    parser.add_argument(
        "--features-of",
        metavar="IMAGE",
        help="also show what each encoder makes of this image",
    )
    arguments = parser.parse_args(argv)

    from siglip2_dense.report import write

    markdown, page, problems = write(arguments.work_dirs, arguments.out, arguments.features_of)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"{markdown}: the tables\n{page}: the same with charts and pictures, for a browser")
