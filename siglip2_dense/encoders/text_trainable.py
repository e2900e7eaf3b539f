"""Which parameters of a text tower train along with a head."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from siglip2_dense.encoders.trainable import PARTS, Trainable
from siglip2_dense.errors import UserError

NAMES = {  # open_clip's, and transformers' of TIPS v2, behind those of a block
    "q": r"attn\.q_proj_weight|self_attn\.q_proj\.weight",
    "k": r"attn\.k_proj_weight|self_attn\.k_proj\.weight",
    "v": r"attn\.v_proj_weight|self_attn\.v_proj\.weight",
    "proj": r"attn\.out_proj\.weight|self_attn\.out_proj\.weight",
    "fc1": r"mlp\.c_fc\.weight|mlp\.fc1\.weight",
    "fc2": r"mlp\.c_proj\.weight|mlp\.fc2\.weight",
}
BLOCK = r".*(?:resblocks|layers)\.\d+\."
TABLE = r"positional_embedding|.*position_embedding\.weight"


def choose(tower: nn.Module, encoder: str, trainable: Trainable) -> dict[str, nn.Parameter]:
    """The parameters of the tower that ``trainable`` names; they are made to need a gradient.

    trainable: "none", "all", or a list out of "q", "k", "v", "proj", "fc1", "fc2" (weights of every block, not their
    biases) and "positions", the position table. Fused projections are split for it.
    Raises UserError for anything else, and for what the tower does not have.
    """
    if trainable == "none":
        return {}
    if trainable == "all":
        return {name: parameter.requires_grad_() for name, parameter in tower.named_parameters()}
    if not isinstance(trainable, (list, tuple)) or not trainable or not all(name in PARTS for name in trainable):
        raise UserError(f"text: trainable={trainable!r}; give 'none', 'all', or a list out of {', '.join(PARTS)}.")
    if set(trainable) & set("qkv"):
        for module in tower.modules():
            if isinstance(module, nn.MultiheadAttention):
                split(module)
    found = dict(tower.named_parameters())
    chosen = []
    for part in trainable:
        pattern = TABLE if part == "positions" else f"{BLOCK}(?:{NAMES[part]})"
        own = [name for name in found if re.fullmatch(pattern, name)]
        if not own:
            raise UserError(f"text: trainable={list(trainable)}: the text tower of {encoder} has no {part} by itself.")
        chosen += own
    return {name: found[name].requires_grad_() for name in found if name in chosen}


def split(attention: nn.MultiheadAttention) -> None:
    """Make the three parts of its fused projection parameters of their own, as torch's module can have them."""
    if attention.in_proj_weight is None:
        return
    for name, part in zip("qkv", attention.in_proj_weight.detach().chunk(3), strict=True):
        parameter = nn.Parameter(part.clone(), requires_grad=False)
        attention.register_parameter(f"{name}_proj_weight", parameter)
    attention.in_proj_weight = None
    attention._qkv_same_embed_dim = False  # what torch goes by


def depths(names: Sequence[str]) -> dict[str, int]:
    """Of each parameter the block it is in, from 1; 0 for what stands before the blocks."""
    found = {name: re.match(r".*(?:resblocks|layers)\.(\d+)\.", name) for name in names}
    return {name: int(match[1]) + 1 if match else 0 for name, match in found.items()}
