"""Text towers as other libraries store them, in open_clip's names."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from siglip2_dense.errors import UserError

CATSEG = "sem_seg_head.predictor.clip_model."
OWN = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
TRANSFORMERS = (  # theirs, open_clip's
    ("embeddings.token_embedding.", "token_embedding."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".self_attn.", ".attn."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    ("final_layer_norm.", "ln_final."),
    ("head.", "text_projection."),
)
BIG_VISION = (
    ("Embed_0/embedding", "token_embedding.weight"),
    ("Encoder_0/encoderblock_", "transformer.resblocks."),
    ("Encoder_0/encoder_norm", "ln_final"),
    ("head/kernel", "text_projection.weight"),
    ("head/bias", "text_projection.bias"),
    ("/LayerNorm_0", ".ln_1"),
    ("/LayerNorm_1", ".ln_2"),
    ("/MlpBlock_0/Dense_0", ".mlp.c_fc"),
    ("/MlpBlock_0/Dense_1", ".mlp.c_proj"),
    ("/MultiHeadDotProductAttention_0/query", ".attn.q_proj"),
    ("/MultiHeadDotProductAttention_0/key", ".attn.k_proj"),
    ("/MultiHeadDotProductAttention_0/value", ".attn.v_proj"),
    ("/MultiHeadDotProductAttention_0/out", ".attn.out_proj"),
    ("/kernel", ".weight"),
    ("/scale", ".weight"),
    ("/bias", ".bias"),
)


class TextState(NamedTuple):
    """The text part of a file."""

    tensors: dict[str, Tensor]  # in the names of open_clip's text transformer
    scale: float | None  # of cosines, in logits; none where the file does not say
    bias: float | None  # of logits; only SigLIP has one


def text_state(content: dict, path: Path) -> TextState:
    """The text tower in a file's content, whatever else the file holds; its layout is told from its keys.

    Known are open_clip's (a text tower alone, inside CLIP, inside CustomTextCLIP), that of CLIP in a checkpoint of
    CAT-Seg, transformers' (alone, inside the whole model or inside OWL-ViT), TIPS v2's, and big_vision's.
    Raises UserError, naming tensors, where there is no text tower in them.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    content = content if isinstance(content, dict) else {}
    state = {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
    if any(key.startswith("owlvit.text_model.") for key in state):
        state = _below(state, "owlvit.")
    for prefix in ("params/txt/", "txt/"):
        if f"{prefix}Embed_0/embedding" in state:
            base = prefix.removesuffix("txt/")
            return TextState(_from_big_vision(_below(state, prefix)), *_logits(state, f"{base}t", f"{base}b"))
    for prefix in ("", "text_model."):
        if f"{prefix}embeddings.token_embedding.weight" in state:
            tensors = _from_transformers(_below(state, prefix))
            if "text_projection.weight" in state:  # CLIP's, beside its text model; open_clip multiplies on the right
                tensors.pop("text_projection.weight", None)
                tensors["text_projection"] = state["text_projection.weight"].T
            return TextState(tensors, *_logits(state))
    for prefix in ("text.", "text_encoder."):
        if f"{prefix}token_embedding.weight" in state:
            return TextState(_below(state, prefix), *_logits(state))
    if f"{CATSEG}token_embedding.weight" in state:
        state = _fuse(_below(state, CATSEG), "_weight")
    if "token_embedding.weight" in state:
        return TextState({key: value for key, value in state.items() if key.startswith(OWN)}, *_logits(state))
    first = ", ".join(list(state)[:3]) or "no tensors"
    raise UserError(
        f"{path} has no text tower in a layout of open_clip, transformers or big_vision: it begins with {first}; give "
        "the file of the whole model, or of its text tower."
    )


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _logits(state: dict[str, Tensor], scale: str = "logit_scale", bias: str = "logit_bias"):
    """Scale and bias. The scale is stored as a logarithm everywhere but in TIPS, which has a temperature."""
    if "temperature" in state:
        return 1 / state["temperature"].item(), None
    return (
        state[scale].double().exp().item() if scale in state else None,
        state[bias].item() if bias in state else None,
    )


def _rename(name: str, pairs) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    counter = "embeddings.position_ids"  # in older files
    return _fuse({_rename(key, TRANSFORMERS): value for key, value in state.items() if key != counter})


def _from_big_vision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kernels are (in, out), of attention (D, heads, D / heads) and back; blocks may be stacked along a first axis."""
    single = {}
    for key, value in state.items():
        if "/encoderblock/" in key:
            single |= {key.replace("/encoderblock/", f"/encoderblock_{i}/"): part for i, part in enumerate(value)}
        else:
            single[key] = value
    tensors = {}
    for key, value in single.items():
        if key.endswith("/out/kernel"):
            value = value.flatten(0, 1).T
        elif key.endswith("/kernel"):
            value = value.flatten(1).T
        elif value.ndim == 2 and key.endswith("/bias"):
            value = value.flatten()
        tensors[_rename(key, BIG_VISION)] = value
    tensors["positional_embedding"] = tensors.pop("pos_embedding")[0]
    return _fuse(tensors)


def _fuse(state: dict[str, Tensor], end: str = ".") -> dict[str, Tensor]:
    """Three projections of attention -> one. end: of "q_proj" in their names."""
    fused, whole = dict(state), ".in_proj_" if end == "." else f".in_proj{end}"
    for key in state:
        if f".q_proj{end}" in key:
            names = [key.replace(".q_proj", f".{part}_proj") for part in "qkv"]
            if all(name in state for name in names):
                fused[key.replace(f".q_proj{end}", whole)] = torch.cat([fused.pop(name) for name in names])
    return fused


def to_tips(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names, which are those of TIPS v2's files, -> transformers' in memory."""
    backwards = [(ours, theirs) for theirs, ours in TRANSFORMERS]
    tensors = {}
    for key, value in state.items():
        if ".in_proj_" in key:
            names = [_rename(key.replace(".in_proj_", f".{part}_proj."), backwards) for part in "qkv"]
            tensors |= dict(zip(names, value.chunk(3), strict=True))
        else:
            tensors[_rename(key, backwards)] = value
    return tensors
