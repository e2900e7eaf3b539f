"""Compare records: the knobs in which they differ, and the differences of their scores with paired 95 % intervals."""

from __future__ import annotations

import argparse
from pathlib import Path

from siglip2_dense.cli.common import STDOUT, add_json_argument, show
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense compare work_dirs/probe_ade20k_siglip2-base-16-256 work_dirs/probe_ade20k_dinov2-base-14
  siglip2-dense compare RUN/results_val.json OTHER/results_val.json THIRD/results_val.json --metric mIoU
  siglip2-dense compare work_dirs/lr_1e-3 work_dirs/lr_1e-2 --settings
  siglip2-dense compare work_dirs/dinov2_linear_ade20k_dinov2-base-14 work_dirs/probe_ade20k_dinov2-base-14 --knobs
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="+", metavar="RECORD", help="a work dir, or a results*.json; the first is A")
    parser.add_argument("--metric", nargs="+", default=[], metavar="NAME", help="only these; default all they share")
    parser.add_argument(
        "--settings", action="store_true", help="they are settings on one encoder, not encoders under one protocol"
    )
    parser.add_argument(
        "--knobs", action="store_true", help="only all in which they were made otherwise, of whatever tests they are"
    )
    add_json_argument(parser, file=True)
    arguments = parser.parse_args(argv)

    from siglip2_dense.compare import compare, compare_knobs, knobs_table, table

    if arguments.json not in (None, STDOUT) and _is_record(Path(arguments.json)):
        raise UserError(f"--json {arguments.json}: a run's record, which is not overwritten; put --json last.")
    if arguments.knobs:
        found = compare_knobs(arguments.records)
    else:
        found = compare(arguments.records, arguments.metric, arguments.settings)
    show(found, (knobs_table if arguments.knobs else table)(found), arguments.json)


def _is_record(path: Path) -> bool:
    """Whether what stands behind --json was meant to be compared."""
    return path.is_dir() or (path.is_file() and '"protocol"' in path.read_text(errors="replace"))
