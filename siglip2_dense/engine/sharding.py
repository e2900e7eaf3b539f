"""What is trained, divided among the ranks: weights, gradients and the state of the optimizers, by torch's FSDP2.

For towers whose training does not fit on one device. Each rank holds a part of every parameter (a ``DTensor``); those
of a block of the image tower are whole for as long as it runs, those of the text tower for as long as the texts do. In
an evaluation every rank has all weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size, is_main_process
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from siglip2_dense.errors import UserError


class ShardedRunner(Runner):
    """Takes a model in shards as it is: mmengine would wrap it, and send the first rank's shards to all others."""

    def wrap_model(self, model_wrapper_cfg, model: nn.Module) -> nn.Module:
        return model

    def _init_model_weights(self) -> None:
        pass


def shard(probe: nn.Module) -> None:
    """Divide a probe's parameters, those of its heads and of the towers that train. Where there is one process that was
    started without a launcher there is nothing to do.

    Optimizers are built after it: the parameters are others then. Raises UserError for what cannot be trained so.
    """
    if probe.example_clip is not None:
        raise UserError(
            f"train_cfg.sharded: no rank has the gradient of an image by itself, which example_clip="
            f"{probe.example_clip} would clip; give model.example_clip=None, and the norm over all images is clipped."
        )
    if not probe.towers:
        raise UserError(
            "train_cfg.sharded: heads by themselves are small; it is for towers that train, model.encoder.trainable or "
            "model.text.trainable. Leave it out."
        )
    units = {name: tower.units(probe.aligned) for name, tower in probe.towers.items()}
    if not dist.is_initialized():
        return
    device = get_device()
    probe.to(device)
    for tensor in probe.trained_state().values():
        broadcast(tensor)  # that of the first rank, as of a run that is not divided
    # torch warns of views that are changed in place; maps of features are views, and nothing changes them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device, (get_world_size(),))
    for name, tower in probe.towers.items():
        for unit in units[name]:
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        tower.trained.follow(tower.tower)
    held = {parameter for tower in probe.towers.values() for parameter in tower.trained.parameters()}
    fully_shard(probe, mesh=mesh, ignored_params=held)  # what is left: the heads


def is_sharded(probe: nn.Module) -> bool:
    return isinstance(probe, FSDPModule)


@contextmanager
def gathered(probe: nn.Module) -> Iterator[None]:
    """Every rank has all weights for as long as this lasts.

    In an evaluation ranks have other numbers of images and windows, and would wait for each other at every pass.
    """
    units = [module for unit in _roots(probe) for module in unit.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not probe, recurse=False)
            unit.reshard()


def _roots(probe: nn.Module) -> list[nn.Module]:
    if not is_sharded(probe):
        return []
    return [probe, *(tower.units(probe.aligned)[-1] for tower in probe.towers.values())]


def local(tensor: Tensor) -> Tensor:
    """What this rank has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree):
    """Plain data and tensors, with those in shards put together, one after the other, in the main memory of the first
    rank, and none in their place on the others. All ranks must call it.
    """
    if isinstance(tree, DTensor):
        tensor = tree.detach().full_tensor()
        return tensor.cpu() if is_main_process() else None
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    return tree


def placed(tensor: Tensor | None, about: Tensor, like: Tensor | None) -> Tensor:
    """A tensor that the first rank has, on all: in shards where ``like`` is in shards and of its shape, else whole.

    about: on all ranks its shape and type. Only one is whole at a time.
    """
    device = "cpu" if like is None else like.device
    tensor = torch.empty_like(about, device=device) if tensor is None else tensor.to(device)
    if isinstance(like, DTensor) and like.shape == about.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    broadcast(tensor)
    return tensor
