"""Stored features: the encoder's pass over the data, kept on disk to train and evaluate from."""

from __future__ import annotations

import argparse
from pathlib import Path

from siglip2_dense.cli.common import add_config_arguments, add_json_argument, load_config, show
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense features extract probe_ade20k --encoder siglip2-base-16-512 --features features
  torchrun --nproc_per_node 8 -m siglip2_dense features extract probe_ade20k --features features --launcher pytorch
  siglip2-dense features extract probe_ade20k --features features --part 3/16   (a job array: 16 such jobs)
  siglip2-dense train probe_ade20k --encoder siglip2-base-16-512 --features features
  siglip2-dense features info features
  siglip2-dense features prune features train-0123456789ab
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    extracting = verbs.add_parser("extract", help="run the encoder over a config's data; goes on where it was stopped")
    add_config_arguments(extracting)
    extracting.add_argument("--part", metavar="I/N", help="one of N independent jobs, each with its own I from 1 to N")
    verifying = verbs.add_parser("verify", help="compare all files with their checksums; exit code 1 on a problem")
    informing = verbs.add_parser("info", help="what is stored, as a table")
    pruning = verbs.add_parser("prune", help="remove stores by their names, which info shows")
    for verb in (verifying, informing, pruning):
        verb.add_argument("folder", metavar="DIR", type=Path, help="the folder that was given as --features")
    add_json_argument(informing)
    pruning.add_argument("stores", nargs="+", metavar="STORE")
    arguments = parser.parse_args(argv)
    {"extract": _extract, "verify": _verify, "info": _info, "prune": _prune}[arguments.verb](arguments)


def _extract(arguments: argparse.Namespace) -> None:
    part = None if arguments.part is None else _part(arguments.part, arguments.launcher)
    from mmengine.dist import is_main_process

    from siglip2_dense.engine import distributed
    from siglip2_dense.engine.features import extract_features

    stores = extract_features(load_config(arguments), part)
    if is_main_process():
        print(_table(stores))
    distributed.stop()


def _part(text: str, launcher: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UserError(f"--part {text}: write I/N, one of N jobs, such as 3/16.")
    if launcher != "none":
        raise UserError(f"--part {text}: the processes of --launcher {launcher} share the work already; leave one out.")
    return int(first), int(count)


def _verify(arguments: argparse.Namespace) -> None:
    """A file that is not as it was written loses its note, so that the next run extracts it again."""
    from tqdm import tqdm

    from siglip2_dense.store.folder import Unreadable

    wrong, missing, unreadable = 0, 0, 0
    for store in _contents(arguments.folder):
        if isinstance(store, Unreadable):
            unreadable += 1
            print(store.problem)
            continue
        shards = store.shards(store.views())
        for shard in tqdm(shards, desc=store.path.name, unit="file", leave=False):
            problem = store.problem(*shard, thorough=True)
            if problem == "not extracted":
                missing += 1
            elif problem:
                wrong += 1
                print(f"{store.file(*shard)}: {problem}")
                store.forget(*shard)
    if wrong:
        raise UserError(
            f"{wrong} file{'s' * (wrong > 1)} of {arguments.folder} cannot be used; the next run with --features "
            f"{arguments.folder}, or siglip2-dense features extract, extracts them again."
        )
    if unreadable:
        raise UserError(f"{unreadable} of the stores in {arguments.folder} cannot be read; prune them, as said above.")
    print(f"{arguments.folder}: all files are as they were written" + f"; {missing} are still missing" * bool(missing))


def _info(arguments: argparse.Namespace) -> None:
    from siglip2_dense.store.folder import Unreadable, described
    from siglip2_dense.store.store import folder_bytes

    stores = _contents(arguments.folder)
    found = [{key.replace(" ", "_"): value for key, value in row.items()} for row in described(stores)]
    for one, row in zip(stores, found, strict=True):
        row["bytes"] = folder_bytes(one.path)
        if isinstance(one, Unreadable):
            row["problem"] = one.problem
        else:
            row["files_missing"] = len(one.missing(one.views()))
    show(found, _table(stores), arguments.json)


def _prune(arguments: argparse.Namespace) -> None:
    from siglip2_dense.store.folder import remove

    _contents(arguments.folder)
    for line in remove(arguments.folder, arguments.stores):
        print(line)


def _contents(folder: Path) -> list:
    from siglip2_dense.store.folder import contents

    found = list(contents(folder))
    if not found:
        raise UserError(f"{folder} holds no stored features; give the folder that was given as --features.")
    return found


def _table(stores: list) -> str:
    """A line for each store."""
    from siglip2_dense.store.folder import described

    rows = described(stores)
    names = list(max(rows, key=len))  # of one that cannot be read less is known
    table = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table)
