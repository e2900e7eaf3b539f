"""Train the heads of a config on a frozen encoder."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import add_config_arguments, command_line, load_config

EXAMPLES = """examples:
  siglip2-dense train probe_ade20k
  siglip2-dense train probe_ade20k --encoder dinov2-base-14
  siglip2-dense train probe_ade20k --features features
  siglip2-dense train probe_ade20k --logger wandb
  torchrun --nproc_per_node 8 -m siglip2_dense train probe_ade20k --launcher pytorch
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last saved step in the work dir")
    parser.add_argument(
        "--logger",
        choices=("tensorboard", "wandb", "mlflow", "json"),
        help="where the curves go; default as the config says",
    )
    arguments = parser.parse_args(argv)

    from siglip2_dense.engine import distributed
    from siglip2_dense.engine.grid import has_several
    from siglip2_dense.engine.run import Run
    from siglip2_dense.engine.sweep import sweep
    from siglip2_dense.engine.train import train

    config = load_config(arguments)
    if arguments.logger:
        config.vis_backends = arguments.logger
    if has_several(config):
        sweep(config, command_line(), arguments.resume)
    else:
        train(Run(config, command_line()), arguments.resume)
    distributed.stop()
