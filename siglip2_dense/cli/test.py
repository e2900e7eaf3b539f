"""Evaluate a head on the test data of a config (its validation data where it names no test data)."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import (
    add_config_arguments,
    add_json_argument,
    command_line,
    load_config,
    show,
    words_aside,
)
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense test probe_ade20k work_dirs/probe_ade20k_siglip2-so400m-14-384/head.safetensors
  siglip2-dense test zeroshot_ade20k --encoder clip-base-16-224
  siglip2-dense test zeroshot_ade20k --benchmarks ade150,pc59,voc20
  siglip2-dense test probe_camvid head.safetensors --json | jq .metrics
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
    add_json_argument(parser)
    arguments = parser.parse_args(argv)
    if arguments.benchmarks is not None and arguments.out:
        raise UserError("--out is one record's file, --benchmarks writes several; give --work-dir instead.")

    from siglip2_dense.engine import distributed
    from siglip2_dense.engine.benchmarks import test_benchmarks
    from siglip2_dense.engine.evaluate import test

    with words_aside(arguments.json):
        config = load_config(arguments)
        if arguments.benchmarks is not None:
            found = test_benchmarks(config, arguments.head, arguments.benchmarks, command_line())
        else:
            found = test(config, arguments.head, arguments.out, command_line())
    if found and arguments.json:  # else it has said all, and other ranks have nothing
        show(found, "", arguments.json)
    distributed.stop()
