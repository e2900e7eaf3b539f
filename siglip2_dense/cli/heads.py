"""Heads to share: push one to a folder or the Hugging Face hub, pull one, list what is there, show what one is."""

from __future__ import annotations

import argparse

from siglip2_dense.cli.common import add_json_argument, show

EXAMPLES = """examples:
  siglip2-dense heads push work_dirs/probe_ade20k_siglip2-base-16-256 hub:me/ade20k-linear --licence apache-2.0
  siglip2-dense heads push work_dirs/demo shelf/demo
  siglip2-dense heads pull hub:me/ade20k-linear
  siglip2-dense heads list shelf
  siglip2-dense heads list hub:me
  siglip2-dense heads show heads/ade20k-linear/head.safetensors
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    pushing = verbs.add_parser("push", help="share a head with a card that is made of its run, and checksums")
    pushing.add_argument("source", help="the work dir of a run, or a head file")
    pushing.add_argument("target", help="a folder, or hub:OWNER/NAME")
    pushing.add_argument("--licence", metavar="SPDX", help="of the head, such as apache-2.0; default: not said")
    pushing.add_argument("--private", action="store_true", help="a repository that is made is for its owner alone")
    pushing.add_argument("--no-picture", action="store_true", help="leave out the run's picture of one of its images")
    pulling = verbs.add_parser("pull", help="fetch a shared head and check it; nothing but data is taken")
    pulling.add_argument("target", help="a folder with a shared head, or hub:OWNER/NAME[@REVISION]")
    pulling.add_argument("folder", nargs="?", help="where it goes; default heads/NAME")
    for verb in (pushing, pulling):
        verb.add_argument("--force", action="store_true", help="also where another head is")
    listing = verbs.add_parser("list", help="the heads in a folder, of an owner or in a collection of the hub")
    listing.add_argument("target", help="a folder, hub:OWNER, or hub:OWNER/COLLECTION")
    showing = verbs.add_parser("show", help="what one head is: encoder, tasks, scores, protocol")
    showing.add_argument("target", help="a head file, a folder with a shared head, or hub:OWNER/NAME[@REVISION]")
    for verb in (listing, showing):
        add_json_argument(verb)
    arguments = parser.parse_args(argv)
    {"push": _push, "pull": _pull, "list": _list, "show": _show}[arguments.verb](arguments)


def _push(arguments: argparse.Namespace) -> None:
    from siglip2_dense.share import push

    options = dict(private=arguments.private, picture=not arguments.no_picture, licence=arguments.licence)
    names = push(arguments.source, arguments.target, arguments.force, **options)
    print(f"{arguments.target}: {', '.join(names)}")


def _pull(arguments: argparse.Namespace) -> None:
    from siglip2_dense.share import pull

    name = arguments.target.partition("@")[0].rstrip("/").rpartition("/")[2]
    print(pull(arguments.target, arguments.folder or f"heads/{name}", arguments.force))


def _list(arguments: argparse.Namespace) -> None:
    from siglip2_dense.share import listing

    found, lines = listing(arguments.target), []
    for one in found:
        about = one.get("encoder") or one.get("damaged") or "it has no card that says more"
        lines.append(f"{one['place']}  {about}")
        lines += [f"  {name}: {_headline(head)}" for name, head in one.get("heads", {}).items()]
    show(found, "\n".join(lines) or f"{arguments.target}: no shared heads", arguments.json)


def _headline(head: dict) -> str:
    value = "not measured" if head.get("value") is None else f"{head['value']:.4g}"
    return f"{head['task']} by {head['head']}, {head['metric']} {value}"


def _show(arguments: argparse.Namespace) -> None:
    from siglip2_dense.card import encoder_licence, summary
    from siglip2_dense.share import read

    content = read(arguments.target)
    said = {key: value for key, value in vars(content).items() if key not in ("tensors", "encoder")}
    encoder, protocol = content.encoder, content.protocol
    data, steps = protocol.get("train_data", {}), protocol.get("optimisation", {})
    count = sum(tensor.numel() for tensor in content.tensors.values())
    lines = [f"encoder  {encoder.name}, weights {encoder.fingerprint[:16]}, licence {encoder_licence(content)}"]
    for name, head in summary(content)["heads"].items():
        classes = content.heads[name]["meaning"].get("classes")
        lines.append(f"head     {name}: {_headline(head)}{f', {len(classes)} classes' if classes else ''}")
    where = f"on {data['name']} {data['split']}, {steps['iterations']} steps" if data and steps else "elsewhere"
    lines += [f"trained  {where}", f"numbers  {count:,} in {len(content.tensors)} tensors"]
    lines += [f"  {name:24} {value:.4f}" for name, value in content.metrics.items() if value is not None]
    show({"encoder": encoder.to_dict(), **said}, "\n".join(lines), arguments.json)
