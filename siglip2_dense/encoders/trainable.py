"""Which parameters of an encoder train along with the heads."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.errors import UserError

PROJECTIONS = ("q", "k", "v", "proj", "fc1", "fc2")
PARTS = (*PROJECTIONS, "positions")
Trainable = str | int | Sequence[str]


class SplitQKV(nn.Module):
    """A fused projection whose three parts are parameters of their own.

    Where only q and v train, a masked gradient would not do: weight decay and momentum would still move the rest of a
    fused matrix.
    """

    def __init__(self, fused: nn.Linear):
        super().__init__()
        for name, part in zip("qkv", fused.weight.detach().chunk(3), strict=True):
            self.register_parameter(name, nn.Parameter(part.clone(), requires_grad=False))
        self.bias = fused.bias

    @property
    def weight(self) -> Tensor:
        """(3 D, D), as it was."""
        return torch.cat([self.q, self.k, self.v])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Trained(nn.Module):
    """Holds an encoder's training parameters by their full names, and nothing else of it."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        super().__init__()
        self._parameters.update(parameters)  # register_parameter refuses names with dots

    def follow(self, tower: nn.Module) -> None:
        """Hold those that the tower has now under the same names."""
        found = dict(tower.named_parameters())
        self._parameters.update({name: found[name] for name in self._parameters})

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        """torch's own takes names with dots for those of other modules."""
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        missing += [prefix + name for name in self._parameters if name not in own]
        unexpected += [prefix + name for name in own if name not in self._parameters]
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if name in own and own[name].shape != parameter.shape:
                    errors.append(f"{prefix}{name} has shape {tuple(own[name].shape)}, not {tuple(parameter.shape)}")
                elif name in own:
                    parameter.copy_(own[name])


def normalised(trainable: Trainable) -> Trainable:
    """The same choice in one way of writing; words that mean nothing are for ``choose`` to refuse."""
    if isinstance(trainable, (list, tuple)):
        return [name for name in PARTS if name in trainable] + [name for name in trainable if name not in PARTS]
    return trainable


def choose(tower: nn.Module, facts: EncoderFacts, trainable: Trainable) -> dict[str, nn.Parameter]:
    """The parameters of the tower that ``trainable`` names; they are made to need a gradient.

    trainable: "none"; "all"; a number, the last blocks and whatever follows them; or names of projections in every
    block, of "q", "k", "v", "proj", "fc1", "fc2": their weights, not their biases. Fused projections are split for it.
    "positions" among the names is the position table. Raises UserError for anything else, and for what the tower does
    not have.
    """
    if trainable == "none":
        return {}
    if isinstance(trainable, int) and not isinstance(trainable, bool):
        if not 1 <= trainable <= facts.num_blocks:
            raise UserError(f"trainable={trainable}: {facts.name} has {facts.num_blocks} blocks; give 1 to that many.")
        chosen = [name for name, layer in layers(tower).items() if layer > facts.num_blocks - trainable]
    elif trainable == "all":
        chosen = [name for name, _ in tower.named_parameters()]
    elif isinstance(trainable, (list, tuple)) and trainable and all(name in PARTS for name in trainable):
        wanted = [name for name in trainable if name in PROJECTIONS]
        chosen = _projections(tower, facts, wanted) if wanted else []
        if len(wanted) < len(trainable):
            if getattr(tower, "pos_embed", None) is None:
                raise UserError(f"trainable={list(trainable)}: {facts.name} has no position table that trains.")
            chosen.append("pos_embed")
    else:
        raise UserError(
            f"trainable={trainable!r}: give 'none', 'all', a number of last blocks, or a list out of "
            f"{', '.join(PARTS)}."
        )
    found = dict(tower.named_parameters())
    return {name: found[name].requires_grad_() for name in chosen}


def _projections(tower: nn.Module, facts: EncoderFacts, wanted: Sequence[str]) -> list[str]:
    """Names of the weights of these projections in every block."""
    if not hasattr(tower, "blocks") or not hasattr(tower.blocks[0], "attn"):
        raise UserError(f"trainable={list(wanted)}: {facts.name} has no attention; give 'all' or a number of blocks.")
    if set(wanted) & set("qkv"):
        for block in tower.blocks:
            if isinstance(getattr(block.attn, "qkv", None), nn.Linear):
                block.attn.qkv = SplitQKV(block.attn.qkv)
    place = re.compile(
        r"blocks\.\d+\.(?:attn\.qkv\.|attn\.|mlp\.)(q|k|v|q_proj|k_proj|v_proj|proj|fc1|fc2)(?:\.weight)?"
    )
    chosen, seen = [], set()
    for name, _ in tower.named_parameters():
        match = place.fullmatch(name)
        part = match and match[1].removesuffix("_proj")
        if part in wanted:
            chosen.append(name)
            seen.add(part)
    if missing := [part for part in wanted if part not in seen]:
        raise UserError(f"trainable={list(wanted)}: the blocks of {facts.name} have no {', '.join(missing)}.")
    return chosen


def layers(tower: nn.Module) -> dict[str, int]:
    """Of each parameter: 0 before the first block, 1 to L in (or just before) one of them, L + 1 after the last.

    Modules are declared in the order in which they run, in every model of timm that gives feature maps.
    """
    taps = [info["module"] for info in tower.feature_info]
    order = {name: position for position, (name, _) in enumerate(tower.named_modules())}
    ends = [max(at for name, at in order.items() if f"{name}.".startswith(f"{tap}.")) for tap in taps]
    found = {}
    for name, _ in tower.named_parameters():
        module = name.rpartition(".")[0]
        passed = sum(end < order[module] for end in ends)
        inside = passed or f"{module}.".startswith(f"{taps[0]}.")
        found[name] = passed + 1 if inside else 0
    return found
