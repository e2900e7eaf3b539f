"""Optimizers and schedules of heads that train together: one for each, after one backward pass for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

from siglip2_dense.errors import UserError
from siglip2_dense.models.probe import ENCODER
from siglip2_dense.registry import build, check_arguments, known_arguments

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # optimizers that can do so on every device


class JointOptimWrapper(OptimWrapperDict):
    """One backward pass for all heads, then a step of each head's own optimizer."""

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        self.zero_grad()
        loss.backward()
        for wrapper in self.values():
            wrapper.step()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        yield


class SilentOptimWrapper(OptimWrapper):
    """Says no gradient's norm to the log, which would take those of several heads for one, and wait for each."""

    def _clip_grad(self):
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], **self.clip_grad_kwargs)


def optimizers_of(probe) -> dict[str, OptimWrapper]:
    """One for each head, and one for what trains of the encoder."""
    wrapper = OptimWrapper if len(probe.heads) == 1 else SilentOptimWrapper
    found = {name: _optimizer(probe.optim[name], head.parameters(), wrapper) for name, head in probe.heads.items()}
    if probe.trains_encoder:
        settings = {**next(iter(probe.optim.values())), **probe.encoder_optim}
        multiplier, decay = settings.pop("lr_mult", 1.0), settings.pop("layer_decay", 1.0)
        if "lr" not in settings:
            raise UserError("encoder_optim: no learning rate is given; give lr, here or in the first head's optim.")
        settings["lr"] *= multiplier
        found[ENCODER] = _optimizer(settings, probe.encoder.rate_groups(settings["lr"], decay))
    return found


def schedules_of(optimizers: Mapping[str, OptimWrapper], schedules: Sequence[dict]) -> dict[str, list[dict]]:
    """The schedules of each optimizer; one that rises to an ``eta_max`` that is not given rises to its own rates."""

    def own(schedule: dict, wrapper: OptimWrapper) -> dict:
        known = known_arguments(check_arguments(PARAM_SCHEDULERS, schedule)) or ()
        if "eta_max" in schedule or "eta_max" not in known:
            return schedule
        return {**schedule, "eta_max": [group["lr"] for group in wrapper.param_groups]}

    return {name: [own(schedule, wrapper) for schedule in schedules] for name, wrapper in optimizers.items()}


def _optimizer(settings: dict, parameters, wrapper: type[OptimWrapper] = OptimWrapper) -> OptimWrapper:
    """The optimizer of these parameters; ``clip_norm`` in its settings bounds the norm of their gradient."""
    settings = dict(settings)
    clip = settings.pop("clip_norm", None)
    if clip is not None and not (isinstance(clip, (int, float)) and clip > 0):
        raise UserError(f"clip_norm={clip!r}: give a number above 0.")
    # one pass over the weights instead of a dozen, which is most of what a small head's step takes
    fused = dict(fused=True) if check_arguments(OPTIMIZERS, settings) in FUSED and "foreach" not in settings else {}
    optimizer = build(OPTIMIZERS, settings, params=parameters, **fused)
    return wrapper(optimizer, clip_grad=None if clip is None else dict(max_norm=clip))
