"""Encoders: which there are, what is known of one, and whether its weights load and give sensible maps."""

from __future__ import annotations

import argparse
import ast

from siglip2_dense.cli.common import add_json_argument, show
from siglip2_dense.errors import UserError, nearest

EXAMPLES = """examples:
  siglip2-dense encoders list --text --max-parameters 100
  siglip2-dense encoders list so400m --licence apache
  siglip2-dense encoders show siglip2-base-16-256
  siglip2-dense encoders check dinov2-base-14 --image photo.jpg
  siglip2-dense encoders check siglip2-base-16-512 --weights siglip2_b16_512.npz --size 384
  siglip2-dense encoders check vit_small_patch14_dinov2 --weights mine.safetensors --model-args depth=6
"""
PASSES = 3  # that are timed, after a first one


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="the catalogue, as a table")
    listing.add_argument("part", nargs="?", default="", metavar="SUBSTRING", help="of the name")
    listing.add_argument("--family", metavar="NAME", help='such as "SigLIP 2" or siglip2')
    listing.add_argument("--text", action="store_true", help="only those with a text tower")
    listing.add_argument("--max-parameters", type=float, metavar="M", help="of the image tower, in millions")
    listing.add_argument("--licence", metavar="SUBSTRING", help="of the weights' licence")
    showing = verbs.add_parser("show", help="all that is known of one; of a timm model what timm knows")
    for verb in (listing, showing):
        add_json_argument(verb)
    checking = verbs.add_parser("check", help="build one, load its weights, time it and draw what its maps hold")
    for verb in (showing, checking):
        verb.add_argument("name", help="a name of the catalogue, or of a timm model")
    checking.add_argument("--weights", default="hub", metavar="hub|random|PATH", help="default hub")
    checking.add_argument("--image", metavar="FILE", help="default a generated scene")
    checking.add_argument("--size", type=int, metavar="PX", help="of the short side; default that of its training")
    checking.add_argument("--out", metavar="FILE.png", help="default work_dirs/check_NAME.png")
    checking.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    checking.add_argument(
        "--model-args", nargs="+", default=[], metavar="KEY=VALUE", help="of the timm model, e.g. depth=6"
    )
    arguments = parser.parse_args(argv)
    {"list": _list, "show": _show, "check": _check}[arguments.verb](arguments)


def _list(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    entries = _chosen(arguments)
    head = ("name", "family", "pixels", "patch", "width", "blocks", "parameters", "text", "licence", "tables")
    rows = [
        (e.name, e.family, *map(str, (e.resolution, e.patch, e.width, e.blocks)), f"{e.parameters / 1e6:.1f} M",
         str(e.embed_dim or "-"), e.licence, e.tables)
        for e in entries
    ]  # fmt: skip
    notes = f"{len(entries)} encoders. text: width of the space that they share with a text tower."
    show([asdict(entry) for entry in entries], f"{_table([head, *rows])}\n\n{notes}", arguments.json)


def _chosen(arguments: argparse.Namespace) -> list:
    """The entries that all filters let through. Raises UserError for an unknown family, and when nothing is left."""
    from siglip2_dense.encoders.catalogue import catalogue

    entries = list(catalogue().values())
    if arguments.family:
        families = {_plain(entry.family): entry.family for entry in entries}
        wanted = _plain(arguments.family)
        if wanted not in families:
            hint = nearest(wanted, families, ", ".join(families.values()))
            raise UserError(f"--family {arguments.family}: no encoder is of this family: {hint}")
        entries = [entry for entry in entries if _plain(entry.family) == wanted]
    most = float("inf") if arguments.max_parameters is None else arguments.max_parameters * 1e6
    entries = [
        entry
        for entry in entries
        if arguments.part.lower() in entry.name
        and (entry.text or not arguments.text)
        and entry.parameters <= most
        and (arguments.licence or "").lower() in entry.licence.lower()
    ]
    if not entries:
        raise UserError("no encoder of the catalogue is all of this; leave a filter out.")
    return entries


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _table(rows) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _show(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from siglip2_dense.encoders.catalogue import catalogue, find

    entry = find(arguments.name)
    known = entry if entry.name in catalogue() else _as_timm_says(entry)
    with_arguments = "".join(f", {key}={value}" for key, value in known.model_args.items())
    total, registers = known.prefix
    facts = {
        "family": known.family,
        "architecture": f"timm's {known.timm.partition('.')[0]}{with_arguments}",
        "image weights": _origin(known.weights or f"timm:{known.timm}"),
        "text tower": _origin(known.text) if known.text else "none",
        "text space": f"{known.embed_dim} channels" if known.embed_dim else "none",
        "trained on": "images of any shape" if "NaFlex" in known.family else f"{known.resolution} pixels a side",
        "maps": f"{known.width} channels, a cell is {known.patch} pixels wide",
        "blocks": str(known.blocks),
        "pooled": known.pooled,
        "prefix": _prefix(total - registers, registers),
        "pixels": f"mean {_triple(known.mean)}, standard deviation {_triple(known.std)}, of 0 to 1",
        "parameters": f"{known.parameters:,}",
        "licence": known.licence or "not stated",
        "in the paper": f"SigLIP 2, tables {known.tables.replace(',', ', ')}" if known.tables[:1].isdigit() else "no",
    }
    text = _facts(known.name, facts)
    if {"*", "?"} & set(known.tables):
        text += "\n* and ? mark tables that do not say which of several checkpoints they mean."
    show(asdict(known), text, arguments.json)


def _as_timm_says(entry):
    """The entry of a timm model that is not in the catalogue, completed without its weights."""
    from dataclasses import replace

    import timm
    import torch

    from siglip2_dense.encoders.facts import facts_of
    from siglip2_dense.encoders.weights import Built, create

    with torch.device("meta"):
        tower = create(entry)
    facts, published = facts_of(entry, Built(tower, None, ""), None), timm.get_pretrained_cfg(entry.timm)
    return replace(
        entry,
        resolution=tower.pretrained_cfg["input_size"][-1],
        patch=facts.strides[-1],
        width=facts.widths[-1],
        blocks=facts.num_blocks,
        pooled=facts.pooled,
        prefix=(len(facts.prefix), facts.prefix.count("register")),
        mean=facts.mean,
        std=facts.std,
        parameters=facts.parameters,
        licence=(published and published.license) or "",
    )


def _origin(source: str) -> str:
    """Where weights come from, in words."""
    kind, _, what = source.partition(":")
    if kind == "package":
        package, _, file = what.partition(":")
        return f"{file} of the Python package {package}"
    if kind == "open_clip":
        model, _, tag = what.partition("/")
        return f"open_clip's {model}, tag {tag}"
    if kind == "timm":
        import timm

        published = timm.get_pretrained_cfg(what)
        if not published or not (published.hf_hub_id or published.url):
            return "none published"
        repository = published.hf_hub_id
        return f"timm's tag {published.tag or '-'}, {f'huggingface.co/{repository}' if repository else published.url}"
    return f"huggingface.co/{what}"


def _check(arguments: argparse.Namespace) -> None:
    import torch

    from siglip2_dense.encoders.catalogue import find
    from siglip2_dense.encoders.frozen import FrozenEncoder
    from siglip2_dense.records import device_name
    from siglip2_dense.viz.layout import save_picture

    if arguments.size is not None and arguments.size < 1:
        raise UserError(f"--size {arguments.size}: give 1 pixel or more.")
    encoder = FrozenEncoder(
        arguments.name, arguments.weights, precision=arguments.precision, model_args=_model_args(arguments.model_args)
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    facts, entry = encoder.facts, find(arguments.name)
    size = arguments.size or entry.resolution or encoder.tower.pretrained_cfg["input_size"][-1]
    image = _image(arguments.image, size, encoder.fixed_size)
    taps = facts.taps("even4", norm=True)
    features = encoder.features([image.to(encoder.mean.device)], taps, pooled=True)
    maps = {tap.block: features.maps[tap][0].cpu() for tap in taps}
    for what, values in (*((f"block {block}", values) for block, values in maps.items()), ("pooled", features.pooled)):
        if not values.isfinite().all():
            raise UserError(f"{facts.name}: {what} holds values that are not finite in {encoder.precision}.")
    height, width = maps[taps[-1].block].shape[-2:]
    told = {
        "fingerprint": facts.fingerprint,
        "blocks": str(facts.num_blocks),
        "width": " ".join(map(str, dict.fromkeys(facts.widths))),
        "grid": f"{height}x{width} cells of {facts.strides[-1]} pixels, "
        f"for an image of {image.shape[1]}x{image.shape[2]}",
        "prefix": _prefix(facts.prefix.count("class"), facts.prefix.count("register")),
        "pooled": f"{facts.pooled}, {features.pooled.shape[-1]} channels",
        "text tower": _text(entry.text, facts.aligned_width),
        "parameters": f"{facts.parameters:,}",
        "time": f"{_milliseconds(encoder, image):.0f} ms an image, median of {PASSES}, {encoder.precision}, "
        f"{device_name()}",
    }
    print(_facts(f"{facts.name}, weights: {arguments.weights}", told))
    out = arguments.out or f"work_dirs/check_{facts.name}.png"
    save_picture(out, _panel(image, maps, features.geometry[0]))
    maps_are = "maps after the final norm" if facts.final_norm else "maps"
    print(f"{out}: three principal components of the {maps_are} as red, green and blue.")


def _model_args(items: list[str]) -> dict:
    """KEY=VALUE of the command line: a number, a truth value, a list, or else a word."""
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--model-args {item}: write KEY=VALUE.")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _image(path: str | None, short: int, fixed):
    """(3, H, W) uint8: the file, or a generated scene of 3 to 4, with a short side of ``short`` pixels, or of the
    ``fixed`` size where the encoder takes no other.
    """
    import torch

    from siglip2_dense.data.images import pixels_of
    from siglip2_dense.data.scenes import render
    from siglip2_dense.data.transforms import fitted
    from siglip2_dense.resample import resize_image

    if path is None:
        return render(0, fixed or (short, short * 4 // 3)).image
    pixels = pixels_of(path)
    size = fixed or fitted(pixels.shape[:2], short, None)
    return torch.from_numpy(resize_image(pixels, size)).permute(2, 0, 1)


def _milliseconds(encoder, image) -> float:
    """Median time of a pass over one image for the last map; the encoder has run once before."""
    import time
    from statistics import median

    import torch

    image, seconds = image.to(encoder.mean.device), []
    for _ in range(PASSES):
        start = time.perf_counter()
        encoder.features([image])
        if image.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds)


def _panel(image, maps: dict, geometry):
    """(h, w, 3) uint8: the image, each map, and those of one grid joined as heads join them."""
    import numpy as np

    from siglip2_dense.resample import resize_image
    from siglip2_dense.viz.pca import pca_panel

    pixels = resize_image(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), geometry.box[2:])  # NaFlex scales it
    shown = {f"block {block}": values.numpy() for block, values in maps.items()}
    if len({values.shape[1:] for values in shown.values()}) == 1:
        shown["these joined"] = np.concatenate(list(shown.values()))
    return pca_panel(pixels, shown, geometry)


def _text(tower: str, width: int | None) -> str:
    if not tower:
        return "none"
    space = f"maps in its space have {width} channels" if width else "these weights hold no projection to its space"
    return f"{_origin(tower)}; {space}"


def _prefix(classes: int, registers: int) -> str:
    counts = ((classes, "class"), (registers, "register"))
    return " and ".join(f"{n} {kind} token{'s' if n > 1 else ''}" for n, kind in counts if n) or "none"


def _triple(values) -> str:
    return " ".join(f"{value:g}" for value in values)


def _facts(title: str, facts: dict[str, str]) -> str:
    width = max(map(len, facts))
    return "\n".join([title, *(f"  {key.ljust(width)}  {value}" for key, value in facts.items())])
