"""Stochastic depth (Huang et al. 2016): in training, branches of a tower's blocks are left out at random.

Each of the two branches of a block, for each image or text by itself; of block k of K with the probability
rate k / (K - 1). What stays is not made larger for it: so OWL-ViT was trained, where timm by default divides by the
probability to stay.
"""

from __future__ import annotations

from torch import nn

from siglip2_dense.errors import UserError


def drop_paths(tower: nn.Module, rate: float, encoder: str) -> list[nn.Module]:
    """Put them into the blocks of timm's transformers, or open_clip's text towers; in train mode they drop.

    Raises UserError for a rate that is none and a tower of another kind.
    """
    from timm.layers import DropPath

    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise UserError(f"drop_path={rate!r}: give the part of the last block's branches to leave out, below 1.")
    blocks, names = _blocks(tower)
    if not all(isinstance(getattr(block, name, None), (nn.Identity, DropPath)) for block in blocks for name in names):
        blocks = ()
    if not blocks:
        raise UserError(
            f"drop_path: the blocks of {encoder}'s {type(tower).__name__} have no place for it; leave it out."
        )
    found = []
    for number, block in enumerate(blocks):
        for name in names:
            path = DropPath(rate * number / max(len(blocks) - 1, 1), scale_by_keep=False).eval()
            setattr(block, name, path)
            found.append(path)
    return found


def _blocks(tower: nn.Module) -> tuple[list[nn.Module], tuple[str, str]]:
    """The blocks, and what stands at the end of each branch: in timm for this, in open_clip for a layer scale."""
    if hasattr(tower, "transformer") and hasattr(tower.transformer, "resblocks"):
        return list(tower.transformer.resblocks), ("ls_1", "ls_2")
    return list(getattr(tower, "blocks", ())), ("drop_path1", "drop_path2")
