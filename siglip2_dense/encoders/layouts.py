"""What other libraries call the tensors of an image tower, and how they become timm's.

A layout is known by one name that only it has. What stands before that name is the prefix of the image tower, so that
the rest of a file (a text tower, a temperature, buffers) is left out by itself. Nothing is resampled or guessed here:
what a layout does not explain keeps its name, and loading says so.

Sources: the modules of open_clip and transformers; big_vision's ``models/vit.py`` and DINOv2's ``models`` for the files
of those two.
"""

from __future__ import annotations

import re
from math import isqrt

import torch
from torch import Tensor, nn

from siglip2_dense.errors import UserError

State = dict[str, Tensor]

# parts of names, replaced in this order
OPEN_CLIP = {
    "conv1.": "patch_embed.proj.",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "transformer.resblocks.": "blocks.",
    "ln_pre": "norm_pre",
    "ln_post": "norm",
    "ln_": "norm",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TRANSFORMERS = {  # SigLIP, SigLIP 2, CLIP and OWL-ViT
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "encoder.layers.": "blocks.",
    "pre_layrnorm": "norm_pre",
    "pre_layernorm": "norm_pre",
    "post_layernorm": "norm",
    "layer_norm": "norm",
    "self_attn.out_proj": "attn.proj",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_": "attn_pool.qkv.",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp": "attn_pool.mlp",
}
TRANSFORMERS_DINOV2 = {  # to DINOv2's own names; attention and gated MLP have other names in memory than in files
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.": "",
    "encoder.layer.": "blocks.",
    "layernorm": "norm",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "mlp.gate_proj": "mlp.w1",
    "mlp.up_proj": "mlp.w2",
    "mlp.down_proj": "mlp.w3",
}
DINOV2 = {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}
BIG_VISION = {
    "Transformer/encoderblock_": "blocks.",
    "Transformer/encoder_norm": "norm",
    "pos_embedding": "pos_embed",
    "embedding/": "patch_embed.proj.",
    "MAPHead_0/probe": "attn_pool.latent",
    "MAPHead_0/MultiHeadDotProductAttention_0": "attn_pool",
    "MAPHead_0/LayerNorm_0": "attn_pool.norm",
    "MAPHead_0/MlpBlock_0": "attn_pool.mlp",
    "MultiHeadDotProductAttention_0": "attn",
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "MlpBlock_0": "mlp",
    "Dense_0": "fc1",
    "Dense_1": "fc2",
    "query": "q",
    "key": "k",
    "value": "v",
    "out/": "proj/",
    "scale": "weight",
    "kernel": "weight",
    "/": ".",
}
SPLIT = ("attn.q_proj_weight", "attn.k_proj_weight", "attn.v_proj_weight")
# of two-tower files, beside the image tower
PROJECTIONS = ("visual_projection.weight", "owlvit.visual_projection.weight", "visual.head.proj.weight")


def to_timm(state: State, tower: nn.Module) -> State:
    """The tensors of the image tower under timm's names, and its projection to the text space as timm's ``head``.

    state: names and tensors as a file has them. One that is in none of the layouts is given back as it is.
    tower: a timm model; its names decide where timm has two for one thing.
    Raises UserError when there are several image towers, as a teacher and its student.
    """
    if all(name.startswith("module.") for name in state):  # saved from within torch's DataParallel
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for mark, convert in LAYOUTS.items():
        prefixes = sorted({found[1] for found in map(re.compile(mark).fullmatch, state) if found})
        if len(prefixes) > 1:
            listed = ", ".join(repr(prefix) for prefix in prefixes)
            raise UserError(f"it holds several image towers, under {listed}; save the one that you want by itself.")
        for prefix in prefixes:
            own = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
            own |= {"head" + name[name.rindex(".") :]: state[name] for name in PROJECTIONS if name in state}
            return convert(own, tower)
    return state


def _from_trunk(state: State, tower: nn.Module) -> State:
    """open_clip around a timm model."""
    return state


def _from_open_clip(state: State, tower: nn.Module) -> State:
    """open_clip's own transformer, and OpenAI's; within CAT-Seg the three projections are apart."""
    projection = state.pop("proj", None)
    state = _rename(_join(state, SPLIT, "attn.in_proj_weight"), OPEN_CLIP)
    if projection is not None:
        state["head.weight"] = projection.T
    bias = dict(tower.named_parameters()).get("patch_embed.proj.bias")
    if bias is not None:  # timm leaves it out only where ``norm_pre`` follows
        state["patch_embed.proj.bias"] = torch.zeros(bias.shape)
    return _shaped(state, tower)


def _from_transformers(state: State, tower: nn.Module) -> State:
    state = _rename({name: tensor for name, tensor in state.items() if "position_ids" not in name}, TRANSFORMERS)
    for kind in ("weight", "bias"):
        joined = state.pop(f"attn_pool.qkv.{kind}", None)
        if joined is not None:
            width = len(joined) // 3
            state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"] = joined[:width], joined[width:]
    return _shaped(state, tower)


def _from_transformers_dinov2(state: State, tower: nn.Module) -> State:
    state = _rename(state, TRANSFORMERS_DINOV2)
    return _from_dinov2(_join(state, ("mlp.w1.", "mlp.w2."), "mlp.w12."), tower)


def _from_dinov2(state: State, tower: nn.Module) -> State:
    """DINOv2's own, and TIPS's: a token for masked patches, and a position for the class token, not for registers."""
    state = _rename(state, DINOV2)
    state.pop("mask_token", None)
    if {"register_tokens", "cls_token", "pos_embed"} <= state.keys():  # timm has then no position for either
        table = state["pos_embed"]
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + table[:, :1]
        state["pos_embed"] = table[:, 1:]
    return _shaped(state, tower)


def _from_big_vision(state: State, tower: nn.Module) -> State:
    """Flax trees: kernels are (in, out), those of attention (in, heads, width) or (heads, width, out)."""
    single = {}
    for name, tensor in state.items():
        stacked = name.removeprefix("Transformer/encoderblock/")
        if stacked == name:
            single[name] = tensor
        else:
            single |= {f"Transformer/encoderblock_{i}/{stacked}": one for i, one in enumerate(tensor)}
    own = _rename({name: _from_flax(name, tensor) for name, tensor in single.items()}, BIG_VISION)
    return _shaped(_join(own, ("attn_pool.k.", "attn_pool.v."), "attn_pool.kv."), tower)


def _from_flax(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("/bias"):
        return tensor.flatten()
    if not name.endswith("/kernel"):
        return tensor
    if tensor.ndim == 4:  # (patch, patch, 3, out); NaFlex keeps (patch patch 3, out), in which the channel runs fastest
        return tensor.permute(3, 2, 0, 1)
    return (tensor.flatten(0, 1) if name.endswith("/out/kernel") else tensor.flatten(1)).T


def _from_efficientnet_pytorch(state: State, tower: nn.Module) -> State:
    """Names of the efficientnet-pytorch package; blocks are numbered through there, by stage in timm."""
    if not hasattr(tower, "conv_stem"):
        return state
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(tower.blocks) for b in range(len(stage))]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanding |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, tensor in state.items():
        part, rest = key.split(".", 1)
        if part == "_blocks":
            number, part, rest = rest.split(".", 2)
            names = expanding if f"_blocks.{number}._expand_conv.weight" in state else plain
            renamed[f"{places[int(number)]}.{names[part]}.{rest}"] = tensor
        else:
            renamed[f"{outer[part]}.{rest}"] = tensor
    return renamed


LAYOUTS = {  # a name that only this layout has, behind the prefix of the image tower
    r"(visual\.trunk\.).*": _from_trunk,
    r"(.*\.|)ln_post\.weight": _from_open_clip,
    r"(.*\.|)embeddings\.patch_embedding\.weight": _from_transformers,
    r"(.*\.|)embeddings\.patch_embeddings\.projection\.weight": _from_transformers_dinov2,
    r"(.*\.|)mask_token": _from_dinov2,
    r"((?:params/)?img/)embedding/kernel": _from_big_vision,
    r"()_conv_stem\.weight": _from_efficientnet_pytorch,
}


def _rename(state: State, names: dict[str, str]) -> State:
    renamed = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def _join(state: State, parts: tuple[str, ...], whole: str) -> State:
    """Tensors of names with each of ``parts``, one below the other, under the name with ``whole``."""
    joined = dict(state)
    for name in state:
        names = [name.replace(parts[0], part) for part in parts]
        if parts[0] in name and all(one in state for one in names):
            joined[name.replace(parts[0], whole)] = torch.cat([joined.pop(one) for one in names])
    return joined


def _shaped(state: State, tower: nn.Module) -> State:
    """What timm has in another form, or under another name in some of its models."""
    state = _join(state, ("attn.q.", "attn.k.", "attn.v."), "attn.qkv.")
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in state and state["pos_embed"].ndim == 2:
        state["pos_embed"] = state["pos_embed"][None]  # (1, N, D)
    if hasattr(tower, "embeds"):  # NaFlex
        state = _rename(state, {"patch_embed.": "embeds.", "pos_embed": "embeds.pos_embed"})
        table = state.get("embeds.pos_embed")
        if table is not None and len(table) == 1 and isqrt(table.shape[1]) ** 2 == table.shape[1]:
            state["embeds.pos_embed"] = table.unflatten(1, [isqrt(table.shape[1])] * 2)  # (1, h, w, D)
        elif table is not None:
            state["embeds.pos_embed"] = table[None]  # big_vision's (h, w, D)
    if "fc_norm.weight" in dict(tower.named_parameters()):  # the last norm is behind the pooling
        state = {re.sub(r"^norm\.", "fc_norm.", name): tensor for name, tensor in state.items()}
    return state
