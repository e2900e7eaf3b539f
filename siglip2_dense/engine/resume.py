"""The state from which a killed run goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic, load_tensors

STATE_FILE = "resume.pt"


def save_state(work_dir: Path, runner, probe, step: int, notes: dict) -> None:
    """One atomic file: step, heads, optimizers, schedules, and ``notes`` (plain data)."""
    state = {
        "step": step,
        "heads": probe.heads.state_dict(),
        "optimizers": runner.optim_wrapper.state_dict(),
        "schedules": {name: [s.state_dict() for s in items] for name, items in runner.param_schedulers.items()},
        "notes": json.dumps(notes),
    }
    with atomic(work_dir / STATE_FILE) as temporary:
        torch.save(state, temporary)


def load_state(work_dir: Path, runner, probe, identity: dict) -> dict | None:
    """Put a run back to its last saved step and return its notes; none when nothing was saved.

    identity: what must be the same as when the state was saved. Raises UserError naming the first difference.
    """
    path = work_dir / STATE_FILE
    if not path.is_file():
        return None
    state = load_tensors(path)
    notes = json.loads(state["notes"])
    difference = first_difference(notes["identity"], json.loads(json.dumps(identity)))
    if difference:
        raise UserError(
            f"{path} cannot be resumed: {difference}; start afresh in another --work-dir, or restore the setting."
        )
    probe.heads.load_state_dict(state["heads"])
    runner.optim_wrapper.load_state_dict(state["optimizers"])
    for name, items in runner.param_schedulers.items():
        for schedule, saved in zip(items, state["schedules"][name], strict=True):
            schedule.load_state_dict(saved)
    runner.train_loop._iter = state["step"]
    return notes


def first_difference(before, now, where: str = "") -> str:
    """A sentence about the first place in which two plain structures differ, or an empty string."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            place = f"{where}.{key}" if where else str(key)
            if key not in before or key not in now:
                return f"{place} is set only {'now' if key in now else 'in the saved run'}"
            if found := first_difference(before[key], now[key], place):
                return found
        return ""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            if found := first_difference(old, new, f"{where}.{number}"):
                return found
        return ""
    return "" if before == now else f"{where} was {before!r} and is now {now!r}"
