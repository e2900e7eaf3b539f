"""Published heads of DINOv2 and TIPS v2 as head files: for tests, pictures and as a yardstick of one's own."""

from __future__ import annotations

import argparse

EXAMPLES = """examples:
  python tools/convert_head.py dinov2_vits14_ade20k_linear_head.pth ade.safetensors --encoder dinov2-small-14
  python tools/convert_head.py dinov2_vitl14_nyu_dpt_head.pth nyu.safetensors --encoder dinov2-large-14 --max-depth 10
  python tools/convert_head.py tips_v2_b14_depth_dpt.zip depth.safetensors --encoder tipsv2-base-14-448
"""


def main(argv: list[str] | None = None) -> None:
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
    from siglip2_dense.errors import UserError

    if not arguments.out.endswith(".safetensors"):
        raise UserError(f"{arguments.out}: head files end in .safetensors.")
    wishes = Wishes(arguments.classes, arguments.max_depth, arguments.activation, arguments.only)
    encoder = dict(type="FrozenEncoder", name=arguments.encoder, weights=arguments.weights)
    content = convert(arguments.source, encoder, wishes)
    head_file.save(arguments.out, content)
    print(f"{arguments.out}: for a config,")
    for name, what in content.protocol["origin"]["heads"].items():
        described = content.heads[name]
        print(f"  {name} ({what})\n    head={described['head']}\n    task={described['task']}")
