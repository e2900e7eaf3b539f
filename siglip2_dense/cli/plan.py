"""What a run will cost: operations, bytes and time, straight through the encoder and from stored features; of OWL-ViT
those of both towers' training, and the memory of each device.

No weights are needed, and no data where the config or the set itself says what classes there are. Times are estimates:
what is assumed of the device is printed with them.
"""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import add_config_arguments, add_json_argument, load_config, show
from siglip2_dense.files import size_text

EXAMPLES = """examples:
  siglip2-dense plan probe_ade20k --device h100
  siglip2-dense plan probe_ade20k --device a100 --cfg-options model.encoder.precision=bf16
  siglip2-dense plan probe_navi_depth --encoder dinov2-base-14 --images 2024 555 --features DIR
  siglip2-dense plan owlvit_siglip2_so400m --device h100 --cfg-options model.example_clip=None
"""
UNKNOWN = "unknown"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--device", choices=("h100", "a100", "cpu"), default="cpu", help="default this machine's CPU")
    parser.add_argument(
        "--images", type=int, nargs=2, metavar=("TRAIN", "VAL"), help="how many, if not to be looked for"
    )
    add_json_argument(parser, file=True)
    arguments = parser.parse_args(argv)

    from siglip2_dense.engine import plan, plan_owlvit
    from siglip2_dense.engine.devices import DEVICES, measured_cpu

    device = measured_cpu() if arguments.device == "cpu" else DEVICES[arguments.device]
    config = load_config(arguments)
    detects = config.model.type == "OWLViT"
    found = (plan_owlvit if detects else plan).plan(config, device, arguments.images)
    show(found, (_text_of_detection if detects else _text)(found), arguments.json)


def _text(found: dict) -> str:
    encoder, data, schedule, size = (found[key] for key in ("encoder", "data", "schedule", "bytes"))
    operations = sum(encoder["operations"].values())
    parts = ", ".join(f"{name} {count / operations:.0%}" for name, count in encoder["operations"].items() if count)
    rows = [
        ("encoder", f"{encoder['name']}: {encoder['parameters'] / 1e6:.1f} M parameters, {encoder['precision']}"),
        ("  one image", f"{_size(encoder['pixels'])} pixels, {_count(operations)}FLOP ({parts})"),
    ]
    for name, head in found["heads"].items():
        passes = f"{_count(head['forward'])}FLOP an image, {_count(head['training'])}FLOP in training"
        names = name.split(", ")
        title = f"head {name}" if len(names) < 4 else f"{len(names)} heads"
        rows.append((title, f"{head['parameters'] / 1e6:.3f} M parameters, {passes}"))
    for split, words in (("train", f"{schedule['images_per_step']} a step"), ("val", "")):
        one = data[split]
        count = UNKNOWN if one["images"] is None else f"{one['images']:,} images ({one['counted']})"
        words = words or f"{one['passes']:.3g} passes each, tested {_often(schedule['evaluations'])}"
        rows.append((f"data {split}", f"{one['name']} {one['split']}: {count}, {words}"))
    if schedule["images_held_out"]:
        rows.append(("  held out", f"{schedule['images_held_out']:,} images of training, tested once to choose by"))
    epochs = "" if schedule["epochs"] is None else f", {schedule['epochs']:.3g} epochs"
    rows.append(("training", f"{schedule['steps']:,} steps{epochs}"))
    parts = ("weights", "gradients_and_moments", "activations")
    words = ", ".join(f"{name.replace('_', ' ')} {_bytes(size[name])}" for name in parts)
    rows.append(("memory", f"about {words}"))
    views = f"{schedule['views']} view{'s' * (schedule['views'] > 1)} of training {_bytes(size['stored_train'])}"
    words = f"{_bytes(size['stored_image'])} an image and view: {views}, windows of evaluation "
    words += f"{_bytes(size['stored_windows'])}; an epoch reads {_bytes(size['read_each_epoch'])}"
    rows.append(("store", words + (f"; {_bytes(size['free'])} are free" if size["free"] is not None else "")))
    rows.append(("time on", found["device"]["name"]))
    speed = found["images_per_second"]
    for way, phases in found["seconds"].items():
        words = ", ".join(f"{name.replace('_', ' ')} {_duration(seconds)}" for name, seconds in phases.items())
        limit = ", as the disk reads" if way == "stored" and found["disk_limits_stored"] else ""
        rows.append((f"  {way}", f"{words} ({_speed(speed[way])} images/s in training{limit})"))
    rows.append(("  assumed", _assumed(found)))
    return _table(rows)


def _text_of_detection(found: dict) -> str:
    encoder, text, head, asked, size = (found[key] for key in ("encoder", "text", "head", "asked", "bytes"))
    device, val, schedule, step = (found[key] for key in ("device", "data", "schedule", "seconds_of_step"))
    rows = [
        ("encoder", f"{encoder['name']} at {_size(encoder['pixels'])} pixels"),
        ("  image tower", f"{_trained(encoder)}; an image {_passes(encoder)}"),
        ("  text tower", f"{_trained(text)}; a text {_passes(text)}"),
        (f"head {head['name']}", f"{head['parameters'] / 1e6:.3f} M parameters, {head['tokens']:,} tokens; an image "
         f"{_passes(head)}"),
    ]  # fmt: skip
    words = "as some of them have" if asked["known"] else "assumed: the data are not there"
    rows.append(("asked", f"{asked['queries']:.3g} queries and {asked['boxes']:.3g} boxes an image ({words})"))
    count, classes = (UNKNOWN if val[key] is None else f"{val[key]:,}" for key in ("images", "classes"))
    words = f"{count} images, asked for {classes} classes, tested {_often(schedule['evaluations'])}"
    rows.append(("data val", f"{val['name']} {val['split']}: {words}"))
    words = f"{schedule['images_per_process']} images and {asked['texts']:,.0f} texts of each process"
    rows.append(("training", f"{schedule['steps']:,} steps, {words}; what is clipped is {found['clip']}"))
    parts = ("weights", "gradients", "moments", "activations")
    rows.append(("memory", "about " + ", ".join(f"{name} {_bytes(size[name])}" for name in parts)))
    ways = [f"{name.replace('_', ' ')} {_bytes(value)}" for name, value in size.items() if name not in parts]
    rows.append(("  of a device", ", ".join(ways)))
    rows.append(("time on", device["name"]))
    words = ", ".join(f"{name.replace('_', ' ')} {_duration(seconds)}" for name, seconds in step.items() if seconds)
    rows.append(("  a step", f"{words} (matching as measured on this machine's processor)"))
    words = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in found["seconds"].items())
    rows.append(("  in all", f"{words} ({_speed(found['images_per_second'])} images/s of a process in training)"))
    kinds = dict.fromkeys((encoder["precision"], text["precision"]))
    rates = [f"{device['reached'][kind]:.0%} of {_count(device['operations'][kind])}FLOP/s in {kind}" for kind in kinds]
    words = f"{', '.join(rates)}, {device['reached_otherwise']:.0%} of {_bytes(device['memory'])}/s, "
    words += f"{device['step'] * 1e3:g} ms beside the arithmetic of a pass; images read, and gradients sent between "
    rows.append(("  assumed", words + "processes, as fast as they are wanted"))
    return _table(rows)


def _trained(tower: dict) -> str:
    parts = f"{tower['parameters'] / 1e6:.1f} M parameters, {tower['trained'] / 1e6:.1f} M of them train"
    return f"{parts}, {tower['precision']}"


def _passes(part: dict) -> str:
    return f"{_count(part['forward'])}FLOP, {_count(part['training'])}FLOP in training"


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {words}" for name, words in rows)


def _assumed(found: dict) -> str:
    device = found["device"]
    reached = device["reached"][found["encoder"]["precision"]]
    typical = [split for split, one in found["data"].items() if one["typical_sizes"]]
    return (
        f"{reached:.0%} of {_count(device['operations'][found['encoder']['precision']])}FLOP/s, "
        f"{device['reached_otherwise']:.0%} of {_bytes(device['memory'])}/s, disk {_bytes(device['disk'])}/s, "
        f"{_bytes(device['keeps'])} of a store kept in memory, "
        f"{device['step'] * 1e3:g} ms beside the arithmetic of a step; images decoded as fast as they are wanted"
        + (f"; typical image sizes ({', '.join(typical)})" if typical else "")
    )


def _often(times: int) -> str:
    return "once" if times == 1 else f"{times} times"


def _size(size) -> str:
    return f"{size[0]} x {size[1]}"


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} P"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(value: float | None) -> str:
    return UNKNOWN if value is None else size_text(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.0f} days"
