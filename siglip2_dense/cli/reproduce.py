"""A row of the SigLIP 2 paper's tables for one encoder, from the data to a report, in one command that can be killed.

Given again, the command goes on: what the records in the work dir show as done, with the same settings, data and
weights, is left out, and a run that was killed goes on from its last saved step.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from siglip2_dense.cli.common import add_config_arguments, load_config, read_config
from siglip2_dense.engine.configs import find_config
from siglip2_dense.engine.tables import TABLES, row_of
from siglip2_dense.errors import UserError

EXAMPLES = """examples:
  siglip2-dense reproduce mini                                   generated scenes, in minutes on a CPU
  siglip2-dense reproduce mini --data DIR --features features    and CamVid and a kitchen, where DIR has them
  siglip2-dense reproduce table2 --encoder siglip2-so400m-14-384 --dry-run --device h100
  siglip2-dense reproduce table2 --encoder siglip2-so400m-14-384 --data DIR --launcher pytorch --processes 8
  siglip2-dense reproduce table3 --encoder siglip2-large-16-384
"""
DATA = "SIGLIP2_DENSE_DATA"  # the variable that says where data sets lie


def main(argv: list[str] | None = None) -> None:
    tables = "\n".join(f"  {name:8}{table.what}" for name, table in TABLES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\ntables:\n{tables}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=tuple(TABLES))
    parser.add_argument("--encoder", metavar="NAME", help="of the row; mini has one of its own")
    parser.add_argument("--weights", metavar="hub|random|PATH", help="where the encoder's weights come from")
    parser.add_argument("--data", metavar="DIR", help="where the data sets lie; default $SIGLIP2_DENSE_DATA, or ./data")
    parser.add_argument("--features", metavar="DIR", help="keep the encoder's features there, and work from them")
    parser.add_argument("--work-dir", metavar="DIR", help="where results go; default work_dirs/TABLE_ENCODER")
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="start training, extraction and tests through torchrun or srun; this command itself is one process",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="how many; the images of a step are shared among them"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the steps, with an estimate of their time")
    parser.add_argument("--device", choices=("h100", "a100", "cpu"), default="cpu", help="that the estimate is for")
    arguments = parser.parse_args(argv)

    from siglip2_dense.engine.devices import DEVICES, measured_cpu
    from siglip2_dense.engine.reproduce import steps_of
    from siglip2_dense.engine.steps import run_steps

    if arguments.data:
        os.environ[DATA] = str(Path(arguments.data).resolve())
    columns = [column.config for column in TABLES[arguments.table].columns]
    encoders = {name: read_config(find_config(name)).model.encoder.name for name in columns}
    encoder, columns = row_of(arguments.table, arguments.encoder, encoders, bool(arguments.data))
    launch = _launch(arguments)
    parts = [arguments.table, encoder, *([Path(arguments.weights).stem] if arguments.weights else [])]
    work_dir = Path(arguments.work_dir or f"work_dirs/{'_'.join(parts)}")
    asked = [_asked(column, encoder, work_dir, arguments, launch) for column in columns]
    if arguments.dry_run:
        device = measured_cpu() if arguments.device == "cpu" else DEVICES[arguments.device]
        steps = _text(steps_of(asked, work_dir, device, launch.processes), launch, device.name)
        print(f"export {DATA}={shlex.quote(os.environ[DATA])}\n{steps}" if arguments.data else steps)
    else:
        run_steps(steps_of(asked, work_dir), launch)


def _launch(arguments: argparse.Namespace):
    """By default as many processes as torchrun finds GPUs for, or as Slurm has given tasks."""
    import torch

    from siglip2_dense.engine.steps import Launch

    known = {"none": 1, "pytorch": max(torch.cuda.device_count(), 1), "slurm": int(os.environ.get("SLURM_NTASKS", 1))}
    count = known[arguments.launcher] if arguments.processes is None else arguments.processes
    if count < 1 or (count > 1 and arguments.launcher == "none"):
        raise UserError(f"--processes {count}: give 1 or more, and with more than one --launcher pytorch or slurm.")
    return Launch(arguments.launcher, count)


def _asked(column, encoder: str, work_dir: Path, arguments: argparse.Namespace, launch):
    """The command line of a column's verbs, and the config that stands for it."""
    from siglip2_dense.engine.reproduce import Asked

    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    flags = ["--encoder", encoder, "--work-dir", str(work_dir / Path(column.config).stem)]
    for name in ("weights", "features"):
        flags += [f"--{name}", getattr(arguments, name)] if getattr(arguments, name) else []
    config = load_config(parser.parse_args([column.config, *flags]))
    options = _roots(config, arguments.data)
    batch = config.train_dataloader.batch_size
    images = batch * column.processes
    whole = load_config(
        parser.parse_args([column.config, *flags, "--cfg-options", *options, f"train_dataloader.batch_size={images}"])
    )
    if launch.batch_size(images) != batch:
        options.append(f"train_dataloader.batch_size={launch.batch_size(images)}")
    spread = [] if launch.launcher == "none" else ["--launcher", launch.launcher]
    return Asked(column, whole, (*flags, *spread), tuple(options))


def _roots(config, data: str | None) -> list[str]:
    """Data sets of the user's own, which configs look for in ./data, are in the folder that is named."""
    roots = {key: config[key].dataset.get("root") for key in config if key.endswith("_dataloader")}
    inside = {key: Path(root).relative_to("data") for key, root in roots.items() if root and root.startswith("data/")}
    return [f"{key}.dataset.root={Path(data).resolve() / place}" for key, place in inside.items()] if data else []


def _text(steps: Sequence, launch, device: str) -> str:
    """The steps with their time and their commands, for people."""
    lines, left = [], [step for step in steps if not step.done]
    for number, step in enumerate(steps, start=1):
        time = "done already" if step.done else _duration(step.seconds)
        lines.append(f"{number:3}  {step.title:44}{time}{f'  ({step.note})' if step.note else ''}")
        lines += [] if step.done else [f"     {shlex.join(launch.command(step.arguments))}"]
    known = [step.seconds for step in left if step.seconds is not None]
    estimate = f"{len(known)} of them take about {_duration(sum(known))} on {launch.processes} x {device}, by estimate"
    lines.append(
        f"{len(left)} of {len(steps)} steps to do; {estimate if known else 'none of them could be estimated'}."
    )
    return "\n".join(lines)


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=max(round(seconds), 1)))
