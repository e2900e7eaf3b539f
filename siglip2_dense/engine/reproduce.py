"""A row of a table, step by step: what is to be done, what is done already, and what the rest will cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from siglip2_dense import records
from siglip2_dense.data.recipes import SETS
from siglip2_dense.engine.devices import Device
from siglip2_dense.engine.plan import plan
from siglip2_dense.engine.resume import STATE_FILE
from siglip2_dense.engine.run import HEAD, RESULTS, Run
from siglip2_dense.engine.steps import REPORT, Step
from siglip2_dense.engine.tables import Column, HeadTest
from siglip2_dense.errors import UserError, first_difference
from siglip2_dense.registry import DATASETS, resolve

OF_SPREADING = ("images_per_process", "batch_norm")  # of a protocol: two runs may differ in it and be of one row
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@dataclass(frozen=True)
class Asked:
    """A column of a row.

    config: with all images of a step in one process, which is what it stands for. flags, options: what its verbs get,
    the latter for ``--cfg-options``.
    """

    column: Column
    config: Config
    flags: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return Path(self.column.config).stem

    @property
    def work_dir(self) -> Path:
        return Path(self.config.work_dir)

    def call(self, *verb: str, head: str | None = None, more: Sequence[str] = (), options: Sequence[str] = ()) -> tuple:
        options = (*self.options, *options)  # these take all that follows them
        last = ("--cfg-options", *options) if options else ()
        return (*verb, self.column.config, *([head] if head else []), *self.flags, *more, *last)


def steps_of(asked: Sequence[Asked], work_dir: Path, device: Device | None = None, processes: int = 1) -> list[Step]:
    """All steps of a row in their order; those that the records in its work dirs show as done are marked.

    device, processes: to estimate times on so many of it, where they are asked for.
    Raises UserError where a work dir holds a finished run of another kind: of other settings, data or weights.
    """
    found: list[Step] = []
    for one in asked:
        own = _steps(one, device, processes)
        if not all(step.done for step in own):
            known = {step.arguments for step in found}
            sets = {step.arguments: step for step in _verifying(one)}
            found += [step for arguments, step in sets.items() if arguments not in known]
        found += own
    places = [str(one.work_dir) for one in asked]
    return [*found, Step((REPORT, *places, "--out", str(work_dir / REPORT)), REPORT, REPORT)]


def _steps(asked: Asked, device: Device | None, processes: int) -> list[Step]:
    """Extraction where features are stored, training, and tests."""
    name, trained = asked.name, _trained(asked)
    seconds, note = ({}, "") if device is None else _estimate(asked.config, device, processes)
    if trained is None and (asked.work_dir / STATE_FILE).is_file():
        note = "goes on from the last saved step"
    found, done = [], trained is not None
    if asked.config.get("feature_store"):
        extracting = [value for key, value in seconds.items() if key.startswith("extraction")]
        arguments = asked.call("features", "extract")
        found.append(Step(arguments, name, f"extract features of {name}", done, sum(extracting) or None))
    training = [value for key, value in seconds.items() if not key.startswith("extraction")]
    arguments = asked.call("train", more=["--resume"])
    found.append(Step(arguments, name, f"train {name}", done, sum(training) or None, "" if done else note))
    return found + [_test(asked, test, trained) for test in asked.column.tests]


def _test(asked: Asked, test: HeadTest, trained: Mapping | None) -> Step:
    names = list(asked.config.benchmarks) if test.benchmarks else [test.name]
    left = [name for name in names if trained is None or not _tested(asked, name, trained)]
    if test.benchmarks:  # one whose data are not there keeps no other from being done
        more = ["--benchmarks", "all" if left == names else ",".join(left)]
    else:
        more = ["--out", str(asked.work_dir / f"results_{test.name}.json")]
    arguments = asked.call("test", head=str(asked.work_dir / HEAD), more=more, options=test.options)
    return Step(arguments, asked.name, f"test {asked.name} on {test.name}", not left)


def _verifying(asked: Asked) -> Iterator[Step]:
    """Of each set that the config trains or is tested on; benchmarks that are not there are left out by the test."""
    names = {kind: name for name, kind in SETS.items()}
    for dataset in _datasets([asked.config.get(key) for key in LOADERS]):
        name, more = names.get(resolve(DATASETS, dataset["type"])), []
        if name in (None, "generated"):
            continue
        if "root" in dataset:
            more += ["--root", dataset["root"]]
        for key in ("ignore", "invalid"):
            if key in dataset:
                values = dataset[key] if isinstance(dataset[key], (list, tuple)) else [dataset[key]]
                more += [f"--{key}", *map(str, values)]
        yield Step(("data", "verify", name, *more), asked.name, f"verify {name}")


def _datasets(tree) -> Iterator[Mapping]:
    """All data sets of a config, those inside others too."""
    if isinstance(tree, Mapping):
        if isinstance(tree.get("type"), str) and DATASETS.get(tree["type"]) is not None:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _datasets(item)


def _trained(asked: Asked) -> dict | None:
    """The record of the finished run in the work dir, none where there is none yet.

    Raises UserError for that of another run: all is compared that ``--resume`` compares, weights of the encoder and
    images included, but for how many processes it had.
    """
    path = asked.work_dir / RESULTS
    if not path.is_file():
        return None
    _, record = records.read(path)
    now = json.loads(json.dumps(Run(asked.config).identity))
    before = {
        **{key: record[key] for key in ("protocol", "encoder")},
        **{key: record["run"].get(key) for key in ("seed", "head_seeds")},
        "val_data": record["data"],
    }
    sides = [{**side, "protocol": _alike(side["protocol"])} for side in (before, now)]
    if difference := first_difference(*sides, origin="in the record"):
        raise UserError(
            f"{asked.work_dir} holds another run, which is finished: {difference}; give another --work-dir, or restore "
            "the setting."
        )
    return record


def _alike(protocol: Mapping) -> dict:
    """A protocol without what training found out and where it ran."""
    optimisation = {key: value for key, value in protocol["optimisation"].items() if key not in OF_SPREADING}
    return {**{key: protocol[key] for key in protocol if key != "peak_learning_rate"}, "optimisation": optimisation}


def _tested(asked: Asked, name: str, trained: Mapping) -> bool:
    """Whether there is a record of a test of the head as it is."""
    path, head = asked.work_dir / f"results_{name}.json", asked.work_dir / HEAD
    if not path.is_file() or path.stat().st_mtime < head.stat().st_mtime:
        return False
    _, record = records.read(path)
    steps = [one["history"][-1]["step"] for one in (record, trained)]
    return record["encoder"]["fingerprint"] == trained["encoder"]["fingerprint"] and steps[0] == steps[1]


def _estimate(config: Config, device: Device, processes: int) -> tuple[dict[str, float], str]:
    """Seconds of the phases on so many devices, and why there are none of some or all."""
    try:
        found = plan(config, device)["seconds"]["stored" if config.get("feature_store") else "straight"]
    except UserError as error:
        return {}, f"no estimate: {str(error).partition(';')[0].removesuffix('.')}"
    known = {key: value / processes for key, value in found.items() if key != "total" and value is not None}
    lacking = [key.replace("_", " ") for key, value in found.items() if key != "total" and value is None]
    return known, f"without {' and '.join(lacking)}, of an unknown number of images" if lacking else ""
