"""Published heads of DINOv2, TIPS v2, CAT-Seg and OWL-ViT as head files: for tests, pictures and as a yardstick of
one's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """examples:
  siglip2-dense convert-head dinov2_vits14_ade20k_linear_head.pth ade.safetensors --encoder dinov2-small-14
  siglip2-dense convert-head dinov2_vitl14_nyu_dpt_head.pth nyu.safetensors --encoder dinov2-large-14 --max-depth 10
  siglip2-dense convert-head tips_v2_b14_depth_dpt.zip depth.safetensors --encoder tipsv2-base-14-448
  siglip2-dense convert-head catseg model_base.pth        (see: siglip2-dense convert-head catseg --help)
  siglip2-dense convert-head owlvit google/owlvit-base-patch16 owl.safetensors       (see: ... owlvit --help)
"""
OF_CATSEG = """Published checkpoints of CAT-Seg as head files, with what was trained of CLIP in them.

It prints what became of each tensor of the checkpoint."""
OF_OWLVIT = """OWL-ViT in transformers' layout as a head file with its config, and back.

In: SOURCE is the folder (or file) of a checkpoint, google/owlvit-*; OUT.safetensors gets the head, and OUT.py the
config to use it with, in which the checkpoint is the weights of both towers.
Out: with --config, SOURCE is a head file, and OUT a folder that transformers' from_pretrained reads; its towers must be
CLIP's.
"""


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    others = {"catseg": _catseg, "owlvit": _owlvit}
    if argv and argv[0] in others:
        others[argv[0]](argv[1:])
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
    parser = _parser("catseg", OF_CATSEG)
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


def _owlvit(argv: list[str]) -> None:
    parser = _parser("owlvit", OF_OWLVIT)
    parser.add_argument("source", help="a checkpoint's folder or file; with --config, a head file")
    parser.add_argument("out", help="OUT.safetensors; with --config, a folder")
    parser.add_argument("--config", metavar="CONFIG", help="of the head file that is to be written in their layout")
    arguments = parser.parse_args(argv)

    from mmengine.config import Config

    from siglip2_dense import head_file
    from siglip2_dense.cli.common import read_config
    from siglip2_dense.convert import owlvit
    from siglip2_dense.engine.configs import find_config
    from siglip2_dense.engine.evaluate import open_probe

    if arguments.config:
        config = read_config(find_config(arguments.config))
        owlvit.export(open_probe(config, head_file.read(arguments.source), arguments.source), arguments.out)
        print(f"{arguments.out}: model.safetensors and config.json, for OwlViTForObjectDetection.from_pretrained")
        return
    _check_name(arguments.out)
    content, model = owlvit.convert(arguments.source)
    head_file.save(arguments.out, content)
    config = Path(arguments.out).with_suffix(".py")
    del model["heads"][owlvit.HEAD]["task"]["classes"]
    Config(dict(seed=0, model=model)).dump(config)
    print(
        f"{arguments.out} and {config}: siglip2-dense predict IMAGE --task detect --config {config} --head "
        f"{arguments.out} --prompts NAMES"
    )


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    prog = f"{Path(sys.argv[0]).name} {name}"
    return argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _check_name(out: str) -> None:
    from siglip2_dense.errors import UserError

    if not out.endswith(".safetensors"):
        raise UserError(f"{out}: head files end in .safetensors.")
