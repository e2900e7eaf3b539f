"""Draw the validation images that a head does worst on, or best: predictions beside the truth, with their scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from siglip2_dense.cli.common import add_json_argument, load_config, show
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense show work_dirs/probe_ade20k_siglip2-base-16-256
  siglip2-dense show work_dirs/demo --head depth --best --count 4 --out best.png
  siglip2-dense show head.safetensors --config configs/probe_folder.py --cfg-options val_dataloader.dataset.root=my_data
"""
HEAD = "head.safetensors"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="HEAD", help="a head file, or the work dir of a finished run")
    parser.add_argument("--config", help="whose test or validation data; default the one that lies beside the head")
    parser.add_argument("--head", metavar="NAME", help="which of several heads; default the first")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="how many images; default 8")
    parser.add_argument("--best", action="store_true", help="the best images instead of the worst")
    parser.add_argument("--out", metavar="FILE.png", help="default worst.png, or best.png, beside the head")
    parser.add_argument("--features", metavar="DIR", help="where the encoder's features are kept")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the config to change"
    )
    add_json_argument(parser)
    arguments = parser.parse_args(argv)

    from siglip2_dense.engine.show import show_extremes

    head = Path(arguments.source)
    head = head / HEAD if head.is_dir() else head
    if not head.is_file():
        raise UserError(f"{head} is not there; give a head file, or the work dir of a finished run.")
    arguments.config = arguments.config or _config_beside(head)
    for name in ("encoder", "weights", "work_dir"):
        setattr(arguments, name, None)
    arguments.launcher = "none"
    out = arguments.out or head.with_name("best.png" if arguments.best else "worst.png")
    found = show_extremes(load_config(arguments), str(head), out, arguments.count, arguments.best, arguments.head)
    metric, data = found["metric"], found["data"]
    lines = [f"{found['head']}: {metric} {found['scores'][metric]:.4g}, {data['images']} images of {data['name']}"]
    lines.append(f"{out}, row by row:")
    lines += [f"  {n}. {metric} {one['scores'][metric]:.4g}  {one['path']}" for n, one in enumerate(found["images"], 1)]
    show(found, "\n".join(lines), arguments.json)


def _config_beside(head: Path) -> str:
    """The config that a run has left in its work dir; of a sweep, that of the heads that it has chosen."""
    found = sorted(head.parent.glob("*.py"))
    chosen = [path for path in found if path.name == "chosen.py"] or found
    if len(chosen) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{head.parent} has not one config beside the head ({names}); give --config.")
    return str(chosen[0])
