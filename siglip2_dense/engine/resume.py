"""The state from which a killed run goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from torch import Tensor

from siglip2_dense.engine.optimizers import parameters_of
from siglip2_dense.engine.sharding import placed, whole
from siglip2_dense.errors import UserError, first_difference
from siglip2_dense.files import atomic, load_tensors

STATE_FILE = "resume.pt"


def state_of(runner, probe) -> dict:
    """What trains and the state of its optimizers, whole on the first rank. All ranks must call it."""
    return whole({"trained": probe.trained_state(), "optimizers": runner.optim_wrapper.state_dict()})


def save_state(work_dir: Path, runner, state: dict, step: int, notes: dict) -> None:
    """One atomic file: step, schedules, ``notes`` (plain data), and ``state`` as of ``state_of``."""
    state = {
        **state,
        "step": step,
        "schedules": {name: [_plain(s) for s in items] for name, items in runner.param_schedulers.items()},
        "notes": json.dumps(notes),
    }
    with atomic(work_dir / STATE_FILE) as temporary:
        torch.save(state, temporary)


def _plain(schedule) -> dict:
    """A schedule's state without functions, which it builds itself and a safe file cannot hold."""
    return {key: value for key, value in schedule.state_dict().items() if not callable(value)}


def load_state(work_dir: Path, runner, probe, identity: dict) -> dict | None:
    """Put a run back to its last saved step and return its notes; none when nothing was saved.

    identity: what must be the same as when the state was saved. Raises UserError naming the first difference.
    """
    path = work_dir / STATE_FILE
    held = load_tensors(path) if path.is_file() and is_main_process() else None
    about = [_shapes(held)]
    broadcast_object_list(about)  # ranks on other machines may not see the first one's disk
    (about,) = about
    if about is None:
        return None
    notes = json.loads(about["notes"])
    difference = first_difference(notes["identity"], json.loads(json.dumps(identity)))
    if difference:
        raise UserError(
            f"{path} cannot be resumed: {difference}; start afresh in another --work-dir, or restore the setting."
        )
    of_optimizers = {
        name: {"state": dict(enumerate(parameters_of(wrapper.optimizer)))}
        for name, wrapper in runner.optim_wrapper.items()
    }
    state = _received(held, about, {"trained": probe.trained_state(), "optimizers": of_optimizers})
    probe.load_trained(state["trained"])
    runner.optim_wrapper.load_state_dict(state["optimizers"])
    for name, items in runner.param_schedulers.items():
        for schedule, saved in zip(items, state["schedules"][name], strict=True):
            schedule.load_state_dict(saved)
    runner.train_loop._iter = state["step"]
    return notes


def _shapes(tree):
    """The same with empty tensors: they go to all ranks one by one, since together they may not fit."""
    if isinstance(tree, Tensor):
        return tree.to("meta")
    if isinstance(tree, dict):
        return {key: _shapes(value) for key, value in tree.items()}
    return [_shapes(value) for value in tree] if isinstance(tree, list) else tree


def _received(tree, about, like):
    """The first rank's tree on all.

    about: it, with empty tensors. like: a tree of what its tensors are to be placed as; a tensor there stands for all
    below, and where nothing is they are whole.
    """
    if isinstance(about, Tensor):
        return placed(tree, about, like if isinstance(like, Tensor) else None)
    if not isinstance(about, (dict, list)):
        return about
    keys = about if isinstance(about, dict) else range(len(about))
    trees = {key: None if tree is None else tree[key] for key in keys}
    likes = {key: like.get(key) if isinstance(like, dict) else like for key in keys}
    parts = {key: _received(trees[key], about[key], likes[key]) for key in keys}
    return parts if isinstance(about, dict) else list(parts.values())
