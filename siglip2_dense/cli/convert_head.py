"""Published heads of DINOv2, TIPS v2 and CAT-Seg as head files: for tests, pictures and as a yardstick of one's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """examples:
  python tools/convert_head.py dinov2_vits14_ade20k_linear_head.pth ade.safetensors --encoder dinov2-small-14
  python tools/convert_head.py dinov2_vitl14_nyu_dpt_head.pth nyu.safetensors --encoder dinov2-large-14 --max-depth 10
  python tools/convert_head.py tips_v2_b14_depth_dpt.zip depth.safetensors --encoder tipsv2-base-14-448
  python tools/convert_head.py catseg model_base.pth        (see: python tools/convert_head.py catseg --help)
"""
OF_CATSEG = """Published checkpoints of CAT-Seg as head files, with what was trained of CLIP in them.

It prints what became of each tensor of the checkpoint."""


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["catseg"]:
        _catseg(argv[1:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the file as its authors publish it: .pth, .pt, .safetensors, .npz or .zip")
    parser.add_argument("out", metavar="OUT.safetensors", help="the head file to write")
    parser.add_argument("--encoder", required=True, metavar="NAME", help="the encoder that the head was trained on")
    parser.add_argument("--weights", default="hub", metavar="hub|random|PATH", help="of the encoder; default hub")
    parser.add_argument("--classes", metavar="NAME|FILE", help="segmentation: the names; default by their number")
    parser.add_argument("--max-depth", type=float, metavar="METRES", help="depth: end of its range; TIPS v2: 10")
    parser.add_argument(
        "--activation",
        choices=("relu", "none"),
        help="depth of TIPS v2: behind the last 3x3 convolution, where two published codes differ; default relu",
    )
    parser.add_argument("--only", choices=("segmentation", "depth", "normals"), help="of several heads in one file")
    arguments = parser.parse_args(argv)

    from siglip2_dense import head_file
    from siglip2_dense.convert import Wishes, convert

    _check_name(arguments.out)
    wishes = Wishes(arguments.classes, arguments.max_depth, arguments.activation, arguments.only)
    encoder = dict(type="FrozenEncoder", name=arguments.encoder, weights=arguments.weights)
    content = convert(arguments.source, encoder, wishes)
    head_file.save(arguments.out, content)
    print(f"{arguments.out}: for a config,")
    for name, what in content.protocol["origin"]["heads"].items():
        described = content.heads[name]
        print(f"  {name} ({what})\n    head={described['head']}\n    task={described['task']}")


def _catseg(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="convert_head.py catseg", description=OF_CATSEG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="model_base.pth or model_large.pth, as the authors publish them")
    parser.add_argument("out", nargs="?", help="the head file to write; default SOURCE.safetensors, without its folder")
    parser.add_argument("--encoder", metavar="NAME", help="clip-base-16-224 or clip-large-14-336; told by its shapes")
    parser.add_argument(
        "--weights",
        default="hub",
        metavar="hub|PATH",
        help="those of CLIP that training started from; where there is no hub, the checkpoint itself; default hub",
    )
    arguments = parser.parse_args(argv)

    from siglip2_dense import head_file
    from siglip2_dense.convert import catseg

    out = arguments.out or f"{Path(arguments.source).stem}.safetensors"
    _check_name(out)
    content, report = catseg.convert(arguments.source, arguments.encoder, arguments.weights)
    head_file.save(out, content)
    for line in report:
        print(f"{'used' if line.used else 'left'}  {line.name}{' -> ' if line.used else ': '}{line.as_what}")
    used = sum(line.used for line in report)
    print(f"{out}: {used} of {len(report)} tensors used, {len(report) - used} left; for a config,")
    settings = catseg.model_config(content.encoder.name, arguments.weights)
    for key in ("encoder", "text", "encoder_optim", "heads"):
        print(f"  {key}={settings[key]}")


def _check_name(out: str) -> None:
    from siglip2_dense.errors import UserError

    if not out.endswith(".safetensors"):
        raise UserError(f"{out}: head files end in .safetensors.")
