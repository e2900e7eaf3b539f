"""Data sets: fetch and lay out, verify, and look at samples with their targets as training sees them."""

from __future__ import annotations

import argparse
from pathlib import Path

from siglip2_dense.cli.common import add_json_argument, read_config, show
from siglip2_dense.engine.configs import find_config, known_configs
from siglip2_dense.errors import UserError, nearest

EXAMPLES = """examples:
  siglip2-dense data prepare ade20k
  siglip2-dense data verify pascal --all
  siglip2-dense data verify lvis
  siglip2-dense data verify folder --root my_set --ignore 11 255
  siglip2-dense data verify rgbd --root my_depth --invalid 65535
  siglip2-dense data show probe_ade20k --split train --count 8
"""

MARGIN = 8  # white pixels around each sample of a picture


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    preparing = verbs.add_parser("prepare", help="fetch a published set, lay it out and verify it; can be interrupted")
    verifying = verbs.add_parser(
        "verify", help="count files, compare sizes, check labels, depth and normals; exit code 1 on a problem"
    )
    showing = verbs.add_parser("show", help="draw samples with their targets, after the transforms, as one PNG")
    for verb in (preparing, verifying):
        verb.add_argument(
            "name",
            help="ade20k, ade20k_full, pascal, pascal_context, pascal_context_459, coco_stuff, nyuv2, nyuv2_labelled, "
            "nyuv2_geonet, navi, coco, lvis, objects365, objects365_v1, visual_genome or generated; for your own "
            "images: folder, with labels, or rgbd, with depth",
        )
    showing.add_argument("name", help="a data set as above, without transforms, or a config, with its own")
    for verb in (preparing, verifying, showing):
        verb.add_argument("--root", metavar="DIR", help="the set's folder; default below $SIGLIP2_DENSE_DATA or ./data")
    for verb in (verifying, showing):
        verb.add_argument("--ignore", type=int, nargs="+", metavar="N", help="folder: labels that do not count")
        verb.add_argument("--invalid", type=int, nargs="+", metavar="N", help="rgbd: depth in the files that is none")
        verb.add_argument("--scale", type=float, metavar="S", help="rgbd: what a metre is in the files; default 1000")
    verifying.add_argument("--all", action="store_true", help="read every image and its targets in full, not a sample")
    add_json_argument(verifying)
    showing.add_argument("--split", default="train", help="of the set; of a config train, val or test; default train")
    showing.add_argument("--count", type=int, default=8, metavar="N", help="samples, spread over the split; default 8")
    showing.add_argument("--out", metavar="FILE.png", help="default work_dirs/show_NAME_SPLIT.png")
    arguments = parser.parse_args(argv)
    {"prepare": _prepare, "verify": _verify, "show": _show}[arguments.verb](arguments)


def _prepare(arguments: argparse.Namespace) -> None:
    from siglip2_dense.data.prepare import prepare

    if not prepare(arguments.name, arguments.root):
        raise UserError(f"{arguments.name} is there but not well; the problems are listed above.")


def _verify(arguments: argparse.Namespace) -> None:
    from siglip2_dense.data.verify import describe, inspect

    splits = inspect(arguments.name, arguments.root, arguments.all, **_options(arguments))
    if arguments.json:
        found = {split: one.to_dict() for split, one in splits.items()}
        show({"name": arguments.name, "splits": found}, "", arguments.json)
    else:
        describe(arguments.name, arguments.root, splits)
    if any(one.problems for one in splits.values()):
        raise UserError(f"{arguments.name} is not well; the problems are listed above.")


def _show(arguments: argparse.Namespace) -> None:
    from siglip2_dense.registry import DATASETS, build
    from siglip2_dense.viz.panels import grid, save_picture

    if arguments.count < 1:
        raise UserError(f"--count {arguments.count}: give 1 or more.")
    dataset = build(DATASETS, _settings(arguments))
    count = min(arguments.count, len(dataset))
    samples = [dataset[i * len(dataset) // count] for i in range(count)]
    out = arguments.out or f"work_dirs/show_{Path(arguments.name).stem}_{arguments.split}.png"
    save_picture(out, grid([_panel(sample, dataset) for sample in samples], columns=min(count, 2)))
    print(f"{out}, row by row:", *(sample.path for sample in samples), sep="\n  ")


def _onto_image(sample, dataset):
    """(N, 4) the boxes in pixels of the image, also where a test leaves them at the size that it was read at."""
    from siglip2_dense.data.transforms import ResizeShortSide

    boxes = sample.boxes.numpy()
    if not any(isinstance(t, ResizeShortSide) or not getattr(t, "targets", True) for t in dataset.transforms):
        return boxes
    (height, width), (old_height, old_width) = sample.image.shape[1:], sample.original_size
    return boxes * ([width / old_width, height / old_height] * 2)


def _options(arguments: argparse.Namespace) -> dict:
    """How to read a set of the user's own, as far as the command says."""
    given = {name: getattr(arguments, name) for name in ("ignore", "invalid", "scale")}
    return {name: value for name, value in given.items() if value is not None}


def _settings(arguments: argparse.Namespace) -> dict:
    """What the data set is built from: the config's own with its transforms, or a bare set."""
    from siglip2_dense.data.recipes import SETS, find_root, own_targets

    name = arguments.name
    if name in SETS:
        settings = {"type": SETS[name], "split": arguments.split}
        if name == "generated":
            settings["length"] = arguments.count
        elif name == "folder":
            find_root(name, arguments.root)
        elif name == "rgbd":
            root = find_root(name, arguments.root)
            normals = ("normals",) if (root / "intrinsics.txt").exists() else ()
            settings["targets"] = (*own_targets(root), *normals)
    else:
        settings = _of_config(name, arguments.split, SETS)
    if arguments.root is not None:
        settings["root"] = arguments.root
    return settings | _options(arguments)


def _of_config(name: str, split: str, sets: dict) -> dict:
    try:
        path = find_config(name)
    except UserError as error:
        known = [*sets, *known_configs()]
        raise UserError(
            f"{name!r} is neither a data set nor a config: {nearest(Path(name).stem, known, ', '.join(known))}"
        ) from error
    config = read_config(path)
    loaders = {key.removesuffix("_dataloader"): config[key] for key in config if key.endswith("_dataloader")}
    if split not in loaders:
        raise UserError(f"--split {split}: {name} has data for {', '.join(loaders)}.")
    return {"seed": config.get("seed", 0), **loaders[split].dataset}


def _panel(sample, dataset):
    """(h, w, 3) uint8: a row for each target, which is brought to the image's size where a test left it at its own."""
    import numpy as np

    from siglip2_dense.data.transforms import resize_nearest
    from siglip2_dense.tasks.segmentation import Segmentation
    from siglip2_dense.viz.boxes import boxes_panel
    from siglip2_dense.viz.colours import palette
    from siglip2_dense.viz.panels import depth_panel, grid, normals_panel, segmentation_panel

    image = sample.image.permute(1, 2, 0).numpy()
    rows = []
    if sample.labels is not None:
        labels = resize_nearest(sample.labels[None], image.shape[:2])[0].numpy()
        rows.append(segmentation_panel(image, labels, None, dataset.classes, Segmentation(dataset.classes).palette))
    if sample.depth is not None:
        depth = resize_nearest(sample.depth, image.shape[:2])[0].numpy()
        rows.append(depth_panel(image, depth, None, getattr(dataset, "unit", "m")))
    if sample.normals is not None:
        rows.append(normals_panel(image, resize_nearest(sample.normals, image.shape[:2]).numpy(), None))
    if sample.boxes is not None and not rows:  # pictures of pixels have no room for names
        names = [", ".join(names) for names in sample.box_names]
        colours = dict(zip(dict.fromkeys(names), palette(len(set(names)) + 1)[1:], strict=True))
        rows.append(boxes_panel(image, (_onto_image(sample, dataset), names, [colours[name] for name in names])))
    return np.pad(grid(rows, columns=1), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)
