"""Train the heads of a config on a frozen encoder."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import add_config_arguments, command_line, load_config

EXAMPLES = """examples:
  python tools/train.py configs/probe_ade20k.py
  python tools/train.py configs/probe_ade20k.py --encoder dinov2-base-14
  torchrun --nproc_per_node 8 tools/train.py configs/probe_ade20k.py --launcher pytorch
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last saved step in the work dir")
    arguments = parser.parse_args(argv)

    from siglip2_dense.engine import distributed
    from siglip2_dense.engine.run import Run
    from siglip2_dense.engine.train import train

    run = Run(load_config(arguments), command_line())
    train(run, arguments.resume)
    distributed.stop()
