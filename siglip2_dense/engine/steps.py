"""Steps of a longer work: verbs of the command line, in processes of their own, over as many of them as there are."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siglip2_dense.engine.run import RESULTS
from siglip2_dense.errors import UserError

SPREAD = ("train", "test", "features")  # verbs that a launcher spreads over processes
REPORT = "report"  # the verb whose arguments are work dirs


@dataclass(frozen=True)
class Step:
    """A verb with its arguments. group: after a step that failed those of its group are left out."""

    arguments: tuple[str, ...]
    group: str
    title: str
    done: bool = False
    seconds: float | None = None  # estimated
    note: str = ""


@dataclass(frozen=True)
class Launch:
    """How verbs are started: by themselves, or spread over processes by torchrun ("pytorch") or srun ("slurm")."""

    launcher: str = "none"
    processes: int = 1

    def command(self, arguments: Sequence[str]) -> list[str]:
        module = ["-m", "siglip2_dense", *arguments]
        if self.launcher == "none" or arguments[0] not in SPREAD:
            return [sys.executable, *module]
        if self.launcher == "slurm":
            return ["srun", "--ntasks", str(self.processes), "--kill-on-bad-exit=1", sys.executable, *module]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        return [sys.executable, *torchrun, *module]

    def batch_size(self, images: int) -> int:
        """Of each process, that a step has so many images. Raises UserError where they cannot be shared evenly."""
        if images % self.processes:
            raise UserError(
                f"--processes {self.processes}: the {images} images of a step cannot be shared among them evenly; give "
                f"a number that divides {images}."
            )
        return images // self.processes


def run_steps(steps: Sequence[Step], launch: Launch) -> None:
    """Do all that is not done.

    A step that fails ends its group, and the others go on; the report is of what there is. Raises UserError in the end
    for what failed.
    """
    failed: dict[str, Step] = {}
    for number, step in enumerate(steps, start=1):
        place, arguments = f"[{number}/{len(steps)}] {step.title}", _of_there(step.arguments)
        if step.done or step.group in failed or not arguments:
            why = f"left out, since {failed[step.group].title} failed" if step.group in failed else "nothing to tell of"
            print(f"{place}: {'done already' if step.done else why}", flush=True)
            continue
        command = launch.command(arguments)
        print(f"{place}: {shlex.join(command)}", flush=True)
        if subprocess.run(command).returncode:
            failed[step.group] = step
    if failed:
        raise UserError(
            f"not done: {', '.join(step.title for step in failed.values())} failed, as is said above; mend it and "
            "give the same command again, which goes on from there."
        )


def _of_there(arguments: Sequence[str]) -> Sequence[str]:
    """For the report, only those work dirs that have a record; nothing where there are none."""
    verb, *places = arguments
    if verb != REPORT:
        return arguments
    there = [place for place in places[:-2] if (Path(place) / RESULTS).is_file()]
    return (verb, *there, *places[-2:]) if there else ()
