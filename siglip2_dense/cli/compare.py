"""Compare records: the differences of their scores, each with its paired 95 % interval over the same images."""

from __future__ import annotations

import argparse
from pathlib import Path

from siglip2_dense.cli.common import STDOUT, add_json_argument, show
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense compare work_dirs/probe_ade20k_siglip2-base-16-256 work_dirs/probe_ade20k_dinov2-base-14
  siglip2-dense compare RUN/results_val.json OTHER/results_val.json THIRD/results_val.json --metric mIoU
  siglip2-dense compare work_dirs/lr_1e-3 work_dirs/lr_1e-2 --settings
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
    add_json_argument(parser, file=True)
    arguments = parser.parse_args(argv)

    from siglip2_dense.compare import compare, table

    if arguments.json not in (None, STDOUT) and _is_record(Path(arguments.json)):
        raise UserError(f"--json {arguments.json}: a run's record, which is not overwritten; put --json last.")
    found = compare(arguments.records, arguments.metric, arguments.settings)
    show(found, table(found), arguments.json)


def _is_record(path: Path) -> bool:
    """Whether what stands behind --json was meant to be compared."""
    return path.is_dir() or (path.is_file() and '"protocol"' in path.read_text(errors="replace"))
