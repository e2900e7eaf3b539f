"""Segment images by names (an overlay with a legend, label files, and what the labels mean), or detect what has a name
or looks like an example (pictures with boxes, and a COCO file)."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import load_config
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  python tools/predict.py photo.jpg --prompts "wicker chair, sofa|couch, floor"
  python tools/predict.py *.jpg --prompts "bus, street" --background 0.3 --encoder clip-base-16-224 --out buses
  python tools/predict.py photo.jpg --prompts names.json
  python tools/predict.py photo.jpg --task detect --head head.safetensors --prompts "cat, remote control"
  python tools/predict.py *.jpg --task detect --head head.safetensors --example shelf.jpg 120,80,210,190 --threshold 0.5
"""
CONFIGS = {"segment": "zeroshot_ade20k", "detect": "owlvit_siglip2_base"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--task", choices=CONFIGS, default="segment", help="default segment")
    parser.add_argument(
        "--prompts",
        metavar="NAMES",
        help="what to look for, with commas between; strokes between several names of one thing; or a file of names",
    )
    parser.add_argument("--out", default="predictions", metavar="DIR", help="default predictions")
    shown = ", ".join(f"{name} to {task}" for task, name in CONFIGS.items())
    parser.add_argument("--config", metavar="CONFIG", help=f"default {shown}")
    parser.add_argument("--head", metavar="FILE", help="the head file of a config whose model is trained")
    parser.add_argument("--encoder", metavar="NAME", help="encoder to use instead of the config's")
    parser.add_argument("--weights", metavar="hub|random|PATH", help="where the encoder's weights come from")
    parser.add_argument(
        "--background",
        type=float,
        metavar="P",
        help="pixels whose best name has a probability below P are background; or put that word among the prompts",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.2, metavar="P", help="detect: the least probability; default 0.2"
    )
    parser.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "x0,y0,x1,y1"),
        help="detect: an image and a box around what to look for, instead of names; several show the same thing",
    )
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings to change")
    parser.set_defaults(launcher="none", work_dir=None)
    arguments = parser.parse_args(argv)

    arguments.config = arguments.config or CONFIGS[arguments.task]
    if arguments.task == "detect":
        from siglip2_dense.detector import detect_files

        if arguments.background is not None:
            raise UserError("--background is for segmentation; --threshold says how sure a box is to be.")
        detect_files(
            load_config(arguments), arguments.head, arguments.images, arguments.out, arguments.prompts,
            arguments.example, arguments.threshold,
        )  # fmt: skip
        return
    if arguments.prompts is None or arguments.example:
        raise UserError("segmentation: say what to look for with --prompts; --example is for --task detect.")

    from siglip2_dense.predictor import predict_files

    predict_files(
        load_config(arguments), arguments.head, arguments.prompts, arguments.images, arguments.out, arguments.background
    )
