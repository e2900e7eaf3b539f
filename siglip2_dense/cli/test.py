"""Evaluate a head on the test data of a config (its validation data where it names no test data)."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import add_config_arguments, command_line, load_config
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  python tools/test.py configs/probe_ade20k.py work_dirs/probe_ade20k_siglip2-so400m-14-384/head.safetensors
  python tools/test.py configs/zeroshot_ade20k.py --encoder clip-base-16-224
  python tools/test.py configs/zeroshot_ade20k.py --benchmarks ade150,pc59,voc20
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("head", nargs="?", help="the head file (.safetensors); none where there is nothing to train")
    parser.add_argument("--out", metavar="FILE", help="where the record goes; default WORK_DIR/results_SPLIT.json")
    parser.add_argument(
        "--benchmarks",
        metavar="all|NAME,…",
        help="instead of the test data, these of the config's benchmarks, each with WORK_DIR/results_NAME.json",
    )
    arguments = parser.parse_args(argv)
    if arguments.benchmarks is not None and arguments.out:
        raise UserError("--out is one record's file, --benchmarks writes several; give --work-dir instead.")

    from siglip2_dense.engine import distributed
    from siglip2_dense.engine.benchmarks import test_benchmarks
    from siglip2_dense.engine.evaluate import test

    config = load_config(arguments)
    if arguments.benchmarks is not None:
        test_benchmarks(config, arguments.head, arguments.benchmarks, command_line())
    else:
        test(config, arguments.head, arguments.out, command_line())
    distributed.stop()
