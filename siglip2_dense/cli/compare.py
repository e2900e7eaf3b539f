"""Compare records: the differences of their scores, each with its paired 95 % interval over the same images."""

from __future__ import annotations

import argparse

EXAMPLES = """examples:
  python tools/compare.py work_dirs/probe_ade20k_siglip2-base-16-256 work_dirs/probe_ade20k_dinov2-base-14
  python tools/compare.py RUN/results_val.json OTHER/results_val.json THIRD/results_val.json --metric mIoU
  python tools/compare.py work_dirs/lr_1e-3 work_dirs/lr_1e-2 --settings
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
    parser.add_argument("--json", metavar="FILE", help="also write what was found")
    arguments = parser.parse_args(argv)

    from siglip2_dense import records
    from siglip2_dense.compare import compare, table

    found = compare(arguments.records, arguments.metric, arguments.settings)
    print(table(found))
    if arguments.json:
        records.write(arguments.json, found)
