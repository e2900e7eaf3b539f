"""Predict images, folders and videos with trained heads, or by names, or find what looks like an example.

Of each image: labels, depths and normals as PNG, pictures to look at, and a JSON file that says what they mean; of
boxes a COCO file too; of a video a video. Sub-folders keep their paths. What is there already is skipped."""

from __future__ import annotations

import argparse
import sys

from siglip2_dense.cli.common import load_config
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense predict photos/ --head segmentation.safetensors --head depth.safetensors --out predictions
  siglip2-dense predict drive.mp4 --head segmentation.safetensors --frames
  siglip2-dense predict photo.jpg --prompts "wicker chair, sofa|couch, floor"
  siglip2-dense predict *.jpg --prompts "bus, street" --background 0.3 --encoder clip-base-16-224 --out buses
  siglip2-dense predict photo.jpg --prompts names.json
  siglip2-dense predict photo.jpg --task detect --head head.safetensors --prompts "cat, remote control"
  siglip2-dense predict *.jpg --task detect --head head.safetensors --example shelf.jpg 120,80,210,190 --threshold 0.5
"""
CONFIGS = {"segment": "zeroshot_ade20k", "detect": "owlvit_siglip2_base"}
ENCODER = "siglip2-base-16-256"  # of names without a config: a fifth of the download of the one in CONFIGS


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)

    from tqdm import tqdm

    from siglip2_dense.engine import distributed
    from siglip2_dense.predict.files import Wanted, predict_files
    from siglip2_dense.predict.inputs import sources

    found = sources(arguments.images, arguments.out)  # what is wrong with them is said before a model is loaded
    distributed.start("none")
    predictor = _open_vocabulary(arguments) if _is_open(arguments) else _trained(arguments)
    wanted = Wanted(arguments.threshold, arguments.floats, arguments.frames, arguments.overwrite)
    lines = sys.stderr if arguments.json else sys.stdout
    outcome = predict_files(predictor, found, arguments.out, wanted, lambda line: tqdm.write(line, file=lines))
    if arguments.json:
        import json

        print(json.dumps({"out": arguments.out, **vars(outcome)}, indent=2))
    if outcome.failed:
        names = ", ".join(one["image"] for one in outcome.failed)
        raise UserError(f"{len(outcome.failed)} of {len(found)} images could not be read: {names}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image and video files, and folders of them")
    parser.add_argument("--out", default="predictions", metavar="DIR", help="default predictions")
    parser.add_argument(
        "--head", action="append", default=[], metavar="FILE", help="head file; several of one encoder share its pass"
    )
    parser.add_argument("--weights", metavar="hub|random|PATH", help="where the encoder's weights come from")
    parser.add_argument("--floats", action="store_true", help="depths and normals as NPZ too, in float32")
    parser.add_argument("--frames", action="store_true", help="of a video, the maps of each frame too")
    parser.add_argument("--overwrite", action="store_true", help="predict again what is there already")
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", help="scale larger images down that an encoder gets whole; default 2^21"
    )
    parser.add_argument("--json", action="store_true", help="print what was written, skipped and left out as JSON")
    names = parser.add_argument_group("by names or examples")
    names.add_argument(
        "--prompts",
        metavar="NAMES",
        help="what to look for, with commas between; strokes between several names of one thing; or a file of names",
    )
    names.add_argument("--task", choices=CONFIGS, help="default segment")
    shown = ", ".join(f"{name} to {task}" for task, name in CONFIGS.items())
    names.add_argument("--config", metavar="CONFIG", help=f"default what the head file says, or else {shown}")
    names.add_argument(
        "--encoder", metavar="NAME", help=f"encoder to use instead of the config's; without a config {ENCODER}"
    )
    names.add_argument(
        "--background",
        type=float,
        metavar="P",
        help="pixels whose best name has a probability below P are background; or put that word among the prompts",
    )
    names.add_argument(
        "--threshold", type=float, default=0.2, metavar="P", help="detect: the least probability; default 0.2"
    )
    names.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "x0,y0,x1,y1"),
        help="detect: an image and a box around what to look for, instead of names; several show the same thing",
    )
    names.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings to change")
    parser.set_defaults(launcher="none", work_dir=None)
    return parser


def _is_open(arguments: argparse.Namespace) -> bool:
    """Whether a model of names is asked for; else the heads have classes of their own."""
    asked = (arguments.example, arguments.task, arguments.config, arguments.encoder, arguments.cfg_options)
    return not arguments.head or any(asked) or arguments.prompts is not None or arguments.background is not None


def _trained(arguments: argparse.Namespace):
    from siglip2_dense.predict.predictor import Predictor

    return Predictor(arguments.head, arguments.weights, **_limits(arguments))


def _limits(arguments: argparse.Namespace) -> dict:
    return {} if arguments.max_pixels is None else {"max_pixels": arguments.max_pixels}


def _open_vocabulary(arguments: argparse.Namespace):
    from siglip2_dense import head_file
    from siglip2_dense.predict.heads import is_open, says_its_model
    from siglip2_dense.predict.predictor import Predictor
    from siglip2_dense.predict.prompts import EXAMPLE, parse_example

    detects = arguments.task == "detect" or bool(arguments.example)
    if detects and arguments.background is not None:
        raise UserError("--background is for segmentation; --threshold says how sure a box is to be.")
    if (arguments.prompts is None) == (not arguments.example):
        raise UserError(
            "say what to look for, by names (--prompts) or by an example (--example); or give trained heads alone, "
            "--head FILE."
        )
    given = arguments.prompts is not None or bool(arguments.example)
    if own := [path for path in arguments.head if given and not is_open(head_file.read(path))]:
        raise UserError(f"{own[0]} has classes of its own; leave out what it is asked for, or give another --head.")
    if len(arguments.head) > 1:
        raise UserError("of heads that are asked for names one is used; give one --head.")
    head = next(iter(arguments.head), None)
    source, weights = head, arguments.weights
    changed = arguments.config or arguments.encoder or arguments.cfg_options
    if head is None or changed or not says_its_model(head):
        if head is None and not arguments.config and not detects:
            arguments.encoder = arguments.encoder or ENCODER
        arguments.config = arguments.config or CONFIGS["detect" if detects else "segment"]
        source, weights = load_config(arguments), None  # which has the weights
    predictor = Predictor.open_vocabulary(
        source,
        arguments.prompts,
        {EXAMPLE: [parse_example(*one) for one in arguments.example]} if arguments.example else None,
        head=None if source is head else head,
        background=arguments.background,
        encoder_weights=weights,
        **_limits(arguments),
    )
    boxes = any(task.target == "boxes" for task in predictor.tasks.values())
    if arguments.task and boxes != detects:
        raise UserError(f"the model finds {'boxes' if boxes else 'no boxes'}; give --task {_other(arguments.task)}.")
    return predictor


def _other(task: str) -> str:
    return next(name for name in CONFIGS if name != task)
