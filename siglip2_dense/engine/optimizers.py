"""Optimizers and schedules of heads that train together: one for each, after one backward pass for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce_params
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

from siglip2_dense.errors import UserError
from siglip2_dense.registry import build, check_arguments, known_arguments

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.Embedding)
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # optimizers that can do so on every device


class JointOptimWrapper(OptimWrapperDict):
    """One backward pass for all heads, then a step of each head's own optimizer.

    Attributes:
        clip_norm: what the norm of the gradient of all parameters together may be, or none.
    """

    clip_norm: float | None = None

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        self.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            together = [p for wrapper in self.values() for p in parameters_of(wrapper.optimizer)]
            nn.utils.clip_grad_norm_(together, self.clip_norm)
        for wrapper in self.values():
            wrapper.step()

    def step_by_examples(self, model: nn.Module, data: dict, most: float) -> dict[str, torch.Tensor]:
        """A step whose gradient is the mean of those of single images, each scaled so that its norm over all that
        trains is ``most`` at most. Returns the losses, averaged over the images.

        One image is in memory at a time, and beside its gradient the sum of those before. Source: differentially
        private training (Abadi et al. 2016) without its noise, as scenic's OWL-ViT has it. Ranks have as many images
        each. ``model`` is the module itself: where DDP would average before a norm can be taken, this does it after.
        """
        data = model.data_preprocessor(data, True)
        parameters = [p for wrapper in self.values() for p in parameters_of(wrapper.optimizer)]
        total: list[torch.Tensor | None] = [None] * len(parameters)
        count, logged = len(data["data_samples"]), []
        for number in range(count):
            one = slice(number, number + 1)
            self.zero_grad()
            losses = model(data["inputs"][one], data["data_samples"][one], mode="loss")
            loss, values = model.parse_losses(losses)
            loss.backward()
            logged.append({key: value.detach() for key, value in values.items()})
            gradients = [p.grad for p in parameters if p.grad is not None]
            scale = (most / nn.utils.get_total_norm(gradients)).clamp(max=1) / count  # without gradient inf, and then 1
            torch._foreach_mul_(gradients, scale)
            for place, p in enumerate(parameters):
                if total[place] is None:
                    total[place] = p.grad
                elif p.grad is not None:
                    total[place].add_(p.grad)
        total = [torch.zeros_like(p) if own is None else own for own, p in zip(total, parameters, strict=True)]
        all_reduce_params(total, op="mean")
        for own, p in zip(total, parameters, strict=True):
            p.grad = own
        for wrapper in self.values():
            wrapper.step()
        return {key: torch.stack([values[key] for values in logged]).mean() for key in logged[0]}

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        yield


class SilentOptimWrapper(OptimWrapper):
    """Says no gradient's norm to the log, which would take those of several heads for one, and wait for each."""

    def _clip_grad(self):
        nn.utils.clip_grad_norm_(parameters_of(self.optimizer), **self.clip_grad_kwargs)


def optimizers_of(probe) -> dict[str, OptimWrapper]:
    """One for each head, and one for what trains of each tower."""
    wrapper = OptimWrapper if len(probe.heads) == 1 else SilentOptimWrapper
    found = {name: _optimizer(probe.optim[name], head, wrapper=wrapper) for name, head in probe.heads.items()}
    for name, tower in probe.towers.items():
        settings = {**next(iter(probe.optim.values())), **probe.optim_of(name)}
        multiplier, decay = settings.pop("lr_mult", 1.0), settings.pop("layer_decay", 1.0)
        if "lr" not in settings:
            raise UserError(
                f"{'text_optim' if probe.optim_of(name) is probe.text_optim else 'encoder_optim'}: no learning rate is "
                "given; give lr, here or in the first head's optim."
            )
        settings["lr"] *= multiplier
        found[name] = _optimizer(settings, tower.tower, tower.rate_groups(settings["lr"], decay))
    return found


def schedules_of(optimizers: Mapping[str, OptimWrapper], schedules: Sequence[dict]) -> dict[str, list[dict]]:
    """The schedules of each optimizer; one that rises to an ``eta_max`` that is not given rises to its own rates."""

    def own(schedule: dict, wrapper: OptimWrapper) -> dict:
        known = known_arguments(check_arguments(PARAM_SCHEDULERS, schedule)) or ()
        if "eta_max" in schedule or "eta_max" not in known:
            return schedule
        return {**schedule, "eta_max": [group["lr"] for group in wrapper.param_groups]}

    return {name: [own(schedule, wrapper) for schedule in schedules] for name, wrapper in optimizers.items()}


def _optimizer(
    settings: dict, module: nn.Module, groups: list[dict] | None = None, wrapper: type[OptimWrapper] = OptimWrapper
) -> OptimWrapper:
    """The optimizer of a module's parameters, or of groups of them.

    Among its settings are two of ours: ``clip_norm`` bounds the norm of the gradient, ``norm_decay`` is the weight
    decay of norms and embeddings.
    """
    settings = dict(settings)
    clip, norm_decay = settings.pop("clip_norm", None), settings.pop("norm_decay", None)
    if clip is not None and not (isinstance(clip, (int, float)) and clip > 0):
        raise UserError(f"clip_norm={clip!r}: give a number above 0.")
    groups = groups or [dict(params=list(module.parameters()))]
    if norm_decay is not None:
        groups = _apart(module, groups, norm_decay)
    # one pass over the weights instead of a dozen, which is most of what a small head's step takes
    fused = dict(fused=True) if check_arguments(OPTIMIZERS, settings) in FUSED and "foreach" not in settings else {}
    optimizer = build(OPTIMIZERS, settings, params=groups, **fused)
    return wrapper(optimizer, clip_grad=None if clip is None else dict(max_norm=clip))


def _apart(module: nn.Module, groups: list[dict], norm_decay: float) -> list[dict]:
    """The groups, each without norms and embeddings, and each of these with a weight decay of their own."""
    of_norms = {id(p) for part in module.modules() if isinstance(part, NORMS) for p in part.parameters(recurse=False)}
    found = []
    for group in groups:
        plain = [p for p in group["params"] if id(p) not in of_norms]
        apart = [p for p in group["params"] if id(p) in of_norms]
        found += [{**group, "params": plain}] if plain else []
        found += [{**group, "params": apart, "weight_decay": norm_decay}] if apart else []
    return found


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
