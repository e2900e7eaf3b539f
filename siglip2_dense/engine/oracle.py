"""The oracle: what a head would score that said the best it could of each cell of its encoder's grid.

Its raw map is made of the targets themselves: of each cell the share of each class, the mean depth, the direction of
the summed normals (``ideal`` of the tasks; the grid is that of the finest map that the head reads). From there on it is
treated as any head's: the task's up-sampling and joining of windows, and the task's metric. So it says how much of a
score the grid itself costs. It is no bound: a head whose raw map is finer than the grid, as DPT's, can be better, and
so can values chosen for what they become when they are interpolated. Of boxes there is none.

It depends on the data and on where the cells lie, and on nothing that is learnt: it is computed once and remembered in
the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from mmengine.dist import broadcast_object_list, is_main_process

from siglip2_dense import records
from siglip2_dense.contracts import Sample
from siglip2_dense.engine.extract import built_with
from siglip2_dense.files import cache_folder, write_text

VERSION = 1  # of what is computed


class Oracle:
    """The scores of the oracle of each head that has one, which are counted as the predictions of ``evaluate`` come by.

    Args:
        probe, data: of the evaluation.
        settings: the config that the data set was built from.
    """

    def __init__(self, probe, data, settings: Mapping):
        self.tasks = {name: task for name, task in probe.tasks.items() if hasattr(task, "ideal")}
        common = _read_by_all(probe, data, settings) if self.tasks else []
        self.keys = {name: _digest([*common, *_read_by(probe, name)]) for name in self.tasks}  # heads share what is one
        held = [{key: _remembered(key) for key in self.keys.values()} if is_main_process() else None]
        broadcast_object_list(held)  # all ranks count, or none
        self.known: dict[str, dict | None] = held[0]
        self.owners = {key: name for name, key in self.keys.items() if self.known[key] is None}
        self.metrics = {key: self.tasks[name].metric() for key, name in self.owners.items()}

    def count(self, places: Sequence[Mapping], samples: Sequence[Sample]) -> None:
        """places: of the images that were predicted last, ``DenseProbe.places``."""
        for key, name in self.owners.items():
            task = self.tasks[name]
            for place, sample in zip(places, samples, strict=True):
                target = getattr(sample, task.target)
                self.metrics[key].update(task.ideal(target, place[name]), target, sample.index)

    def finish(self) -> dict[str, dict[str, float]]:
        """The scores by head, over the images of all ranks."""
        for key, metric in self.metrics.items():
            metric.sync()
            self.known[key] = metric.compute()
            if is_main_process():
                with suppress(OSError):  # a cache that cannot be written only costs time
                    write_text(_file(key), json.dumps(self.known[key]))
        self.metrics, self.owners = {}, {}
        return {name: self.known[key] for name, key in self.keys.items()}


def _read_by_all(probe, data, settings: Mapping) -> list:
    """What the oracles of all heads depend on."""
    windows = [type(probe).__name__, probe.inference, getattr(probe, "grid", None)]
    return [VERSION, records.describe_data(data), _state(data), built_with(data, settings), windows]


def _read_by(probe, name: str) -> list:
    """What of a head and its task its oracle depends on beside."""
    task, facts = probe.tasks[name], probe.facts
    strides = [facts.strides[tap.block] for tap in probe.heads[name].taps] or [facts.strides[-1]]
    cells = [min(strides), facts.multiple, facts.sequence_length]
    return [type(task).__name__, task.scoring, len(getattr(task, "classes", ())), *cells]


def _state(data) -> list:
    """Size and time of each file, so that a target that is corrected is not taken for the old one."""
    states = [path.stat() for index in range(len(data)) for path in data.files_on_disk(index)]
    return [(state.st_size, state.st_mtime_ns) for state in states]


def _digest(parts: Sequence) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:32]


def _file(key: str):
    return cache_folder() / "oracle" / f"{key}.json"


def _remembered(key: str) -> dict | None:
    try:
        return json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
