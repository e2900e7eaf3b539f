"""Write an encoder and its heads to one file that runs without this package: ONNX, or torch's own exported program.

It takes batches of RGB images (B, 3, H, W), uint8, of any size where the encoder allows it, and gives finished maps of
that size: classes, depth, unit normals, or boxes with scores. Before it is there it is compared with the model."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import load_config
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense export head.safetensors --out model.onnx
  siglip2-dense export segmentation.safetensors depth.safetensors --out model.pt2 --size 480 640
  siglip2-dense export catseg.safetensors --prompts "cat, sofa|couch" --out catseg.onnx
  siglip2-dense export --config zeroshot_ade20k --encoder clip-base-16-224 --prompts names.json --out clip.onnx
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("heads", nargs="*", metavar="HEAD", help="head files of one encoder, in one pass of it")
    parser.add_argument("--out", required=True, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="of all images; by default any, where the encoder allows"
    )
    parser.add_argument("--weights", metavar="hub|random|PATH", help="of the encoder; default: as in training")
    parser.add_argument("--prompts", metavar="NAMES", help="of a model that takes any names: as for predict")
    parser.add_argument("--config", metavar="CONFIG", help="of such a model; default what the head file says")
    parser.add_argument("--encoder", metavar="NAME", help="with --config, the encoder to use instead of its own")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="with --config, its changes")
    parser.set_defaults(launcher="none", work_dir=None)
    arguments = parser.parse_args(argv)
    if arguments.size and min(arguments.size) < 1:
        raise UserError(f"--size {arguments.size[0]} {arguments.size[1]}: give a height and a width in pixels.")
    if arguments.config is None:
        for option in ("encoder", "cfg_options"):
            if getattr(arguments, option):
                raise UserError(f"--{option.replace('_', '-')} is for models that take any names; give their --config.")
        if not arguments.heads:
            raise UserError("say what to export: head files, or the --config of a model that takes any names.")
    elif arguments.prompts is None:
        raise UserError('--config: say what to look for, --prompts "wicker chair, sofa|couch".')
    if arguments.prompts is not None and len(arguments.heads) > 1:
        raise UserError(f"--prompts: a model of names has one head file, not {len(arguments.heads)}.")

    from siglip2_dense.export.checked import export
    from siglip2_dense.export.opening import open_heads, open_vocabulary
    from siglip2_dense.export.program import check_name

    check_name(arguments.out)  # before anything is built
    if arguments.prompts is None:
        probe = open_heads(arguments.heads, arguments.weights)
    else:
        head = next(iter(arguments.heads), None)
        config = _config_in(head, arguments.weights) if arguments.config is None else load_config(arguments)
        probe = open_vocabulary(config, head, arguments.prompts)
    found = export(probe, arguments.out, tuple(arguments.size) if arguments.size else None)
    size = "any size" if found.size is None else f"{found.size[0]}x{found.size[1]} pixels (height x width) alone"
    print(f"{arguments.out}: takes batches of images of {size}{f': {found.reason}' if found.reason else ''}")
    print("largest difference from the model: " + ", ".join(f"{name} {x:.1e}" for name, x in found.differences.items()))


def _config_in(head: str, weights: str | None):
    """The config that a head file of open vocabulary holds."""
    from siglip2_dense import head_file
    from siglip2_dense.predict.heads import config_of

    return config_of(head_file.read(head), head, weights)
