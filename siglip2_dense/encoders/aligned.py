"""Maps in the text space, from the last block of an encoder that was trained with texts.

Such an encoder meets the texts with one vector for the whole image, so its tokens are not in their space; three ways
(``Alignment.mode``) take them there without training. For encoders that pool their class token (CLIP), with x the
tokens that enter the last block, n its first norm and F its MLP branch:

- "value": z = P(V n(x)), each token's own value through the attention's output projection P (layer scale, and a norm
  before P, where the block has them), then the final norm and the projection. That is attention to oneself alone.
  ``residual`` adds to z nothing, "own" x, or the "class" token's x for all tokens; ``mlp`` then adds F(z). The released
  MaskCLIP (Zhou et al. 2022) and TIPS v2 have "own" and the MLP, CAT-Seg (Cho et al. 2024) "class" and the MLP.
- "qkv": as "value", but each token attends to all those like it: the values are weighted by the mean of
  softmax(q q' / sqrt d), softmax(k k' / sqrt d) and softmax(v v' / sqrt d), class and register tokens included. With q
  alone and neither residual nor MLP it would be ClearCLIP (Lan et al. 2024), with the sum of q and k, residual "own"
  and the MLP SCLIP (Wang et al. 2024), with unit vectors, a temperature and iterations GEM (Bousselham et al. 2024).
  Rotary positions are left out: what is compared is content.
- "raw": the tokens as they are, after the final norm and the projection.

Encoders that pool by attention (SigLIP, PE-Core) have their values in that pooling: "value" is what it gives for each
token as if it were the only one. The last block stays whole, so there is no residual or MLP to choose. "qkv" changes
the attention of the last block and keeps its residual and MLP, since the pooling was trained on their sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siglip2_dense.contracts import Alignment
from siglip2_dense.encoders.facts import final_norm, is_vit
from siglip2_dense.encoders.trainable import SplitQKV
from siglip2_dense.errors import UserError

MODES = ("value", "qkv", "raw")
RESIDUALS = ("none", "own", "class")


def blocks_of(tower: nn.Module, how: Alignment) -> tuple[int, ...]:
    """The blocks whose outputs ``aligned_map`` needs.

    Raises UserError for a way that is none, or that this tower does not have.
    """
    if how.mode not in MODES or how.residual not in RESIDUALS or not isinstance(how.mlp, bool):
        raise UserError(f"{how}: give mode {', '.join(MODES)}, residual {', '.join(RESIDUALS)}, and mlp True or False.")
    if not is_vit(tower):
        raise UserError(f"{type(tower).__name__} has no tokens to bring to the text space; take a transformer.")
    pools = _pooling(tower) is not None
    if (pools or how.mode == "raw") and (how.residual != "none" or how.mlp):
        whose = "the last block of an encoder that pools by attention" if pools else "mode='raw'"
        raise UserError(f"{how}: {whose} keeps its own residual and MLP; leave out residual and mlp.")
    if how.residual == "class" and getattr(tower, "cls_token", None) is None:
        raise UserError(f"{how}: the tower has no class token to add; give residual='own' or 'none'.")
    last = len(tower.blocks) - 1
    if how.mode == "raw" or (pools and how.mode == "value"):
        return (last,)
    if last == 0:
        raise UserError(f"{how}: a tower of one block has none before the last; give it depth=2 or more.")
    return (last - 1,)


def aligned_map(
    tower: nn.Module,
    projection: nn.Linear | None,
    tokens: dict[int, Tensor],
    how: Alignment,
    valid: Tensor | None = None,
) -> Tensor:
    """tokens: (B, prefix + N, C) of each block, without the final norm -> (B, N, E) in the text space, of any length.

    projection: from the pooled vector to the text space, or none where that is the pooled vector's own.
    valid: (B, prefix + N) bool, which tokens may be attended to; none = all.
    """
    (block,) = blocks_of(tower, how)
    pooling, z = _pooling(tower), tokens[block]
    if pooling is not None and projection is not None and how.mode == "raw":
        raise UserError("mode='raw': between these tokens and the text space stands the pooling; give mode='value'.")
    if block < len(tower.blocks) - 1:
        residual, mlp = (how.residual, how.mlp) if pooling is None else ("own", True)
        z = _last_block(tower.blocks[-1], z, how.mode, residual, mlp, valid)
    z = final_norm(tower)(z[:, tower.num_prefix_tokens :])
    if pooling is not None and how.mode != "raw":
        z = _pooled_alone(pooling, z)
    return z if projection is None else projection(z)


def _pooling(tower: nn.Module) -> nn.Module | None:
    return getattr(tower, "attn_pool", None)


def _last_block(block: nn.Module, x: Tensor, mode: str, residual: str, mlp: bool, valid: Tensor | None) -> Tensor:
    """The block with another attention, (B, N, C) -> (B, N, C)."""
    normed = block.norm1(x)
    attended = _values(block.attn, normed) if mode == "value" else _attend_alike(block.attn, normed, valid)
    z = _scaled(block, 1, block.attn.proj(block.attn.norm(attended)))
    if residual != "none":
        z = z + (x if residual == "own" else x[:, :1])
    return z + _scaled(block, 2, block.mlp(block.norm2(z))) if mlp else z


def _values(attention: nn.Module, x: Tensor) -> Tensor:
    if attention.qkv is None:  # EVA02
        return attention.v_proj(x)
    fused = attention.qkv
    # not through the whole: what is not used has no gradient then, not even zero
    weight = fused.v if isinstance(fused, SplitQKV) else fused.weight.chunk(3)[2]
    return F.linear(x, weight, fused.bias.chunk(3)[2])


def _attend_alike(attention: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, N, C) -> (B, N, C): the mean of the values weighted by q with q, k with k and v with v."""
    if attention.qkv is None:
        parts = [attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)]
    else:
        parts = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts]
    mask = None if valid is None else valid[:, None, None]
    values = [F.scaled_dot_product_attention(one, one, heads[2], attn_mask=mask) for one in heads]
    return torch.stack(values).mean(0).transpose(1, 2).flatten(2)


def _scaled(block: nn.Module, branch: int, x: Tensor) -> Tensor:
    """The block's layer scale of its first or second branch, as timm's two kinds of blocks have it."""
    if hasattr(block, f"ls{branch}"):
        return getattr(block, f"ls{branch}")(x)
    gamma = getattr(block, f"gamma_{branch}")
    return x if gamma is None else x * gamma


def _pooled_alone(pooling: nn.Module, y: Tensor) -> Tensor:
    """(B, N, C) -> (B, N, P): what timm's attention pooling gives for each token alone: one key weighs 1."""
    value = F.linear(y, pooling.kv.weight.chunk(2)[1], pooling.kv.bias.chunk(2)[1])
    z = pooling.proj(value)
    return z + pooling.mlp(pooling.norm(z))
