"""The state from which a killed run goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.dist import broadcast_object_list, is_main_process

from siglip2_dense.errors import UserError, first_difference
from siglip2_dense.files import atomic, load_tensors

STATE_FILE = "resume.pt"


def save_state(work_dir: Path, runner, probe, step: int, notes: dict) -> None:
    """One atomic file: step, what trains, optimizers, schedules, and ``notes`` (plain data)."""
    state = {
        "step": step,
        "trained": probe.trained_state(),
        "optimizers": runner.optim_wrapper.state_dict(),
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
    held = [load_tensors(path) if path.is_file() and is_main_process() else None]
    broadcast_object_list(held)  # ranks on other machines may not see the first one's disk
    (state,) = held
    if state is None:
        return None
    notes = json.loads(state["notes"])
    difference = first_difference(notes["identity"], json.loads(json.dumps(identity)))
    if difference:
        raise UserError(
            f"{path} cannot be resumed: {difference}; start afresh in another --work-dir, or restore the setting."
        )
    probe.load_trained(state["trained"])
    runner.optim_wrapper.load_state_dict(state["optimizers"])
    for name, items in runner.param_schedulers.items():
        for schedule, saved in zip(items, state["schedules"][name], strict=True):
            schedule.load_state_dict(saved)
    runner.train_loop._iter = state["step"]
    return notes
