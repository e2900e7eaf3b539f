"""Segment images by names: an overlay with a legend, label files, and what the labels mean."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import load_config

EXAMPLES = """examples:
  python tools/predict.py photo.jpg --prompts "wicker chair, sofa|couch, floor"
  python tools/predict.py *.jpg --prompts "bus, street" --background 0.3 --encoder clip-base-16-224 --out buses
  python tools/predict.py photo.jpg --prompts names.json
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="NAMES",
        help="what to look for, with commas between; strokes between several names of one thing; or a file of names",
    )
    parser.add_argument("--out", default="predictions", metavar="DIR", help="default predictions")
    parser.add_argument("--config", default="zeroshot_ade20k", metavar="CONFIG", help="default zeroshot_ade20k")
    parser.add_argument("--head", metavar="FILE", help="the head file of a config whose model is trained")
    parser.add_argument("--encoder", metavar="NAME", help="encoder to use instead of the config's")
    parser.add_argument("--weights", metavar="hub|random|PATH", help="where the encoder's weights come from")
    parser.add_argument(
        "--background",
        type=float,
        metavar="P",
        help="pixels whose best name has a probability below P are background; or put that word among the prompts",
    )
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings to change")
    parser.set_defaults(launcher="none", work_dir=None)
    arguments = parser.parse_args(argv)

    from siglip2_dense.predictor import predict_files

    predict_files(
        load_config(arguments), arguments.head, arguments.prompts, arguments.images, arguments.out, arguments.background
    )
