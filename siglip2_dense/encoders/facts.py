"""What is read from a built image tower, whatever its family."""

from __future__ import annotations

from torch import nn

from siglip2_dense.contracts import EncoderFacts, Size
from siglip2_dense.encoders.catalogue import Entry
from siglip2_dense.encoders.naflex import grid_of
from siglip2_dense.encoders.weights import Built


def is_vit(tower: nn.Module) -> bool:
    return hasattr(tower, "blocks") and hasattr(tower, "num_prefix_tokens")


def is_naflex(tower: nn.Module) -> bool:
    """Whether it takes images as patches at their own aspect."""
    return is_vit(tower) and hasattr(tower, "embeds")


def final_norm(tower: nn.Module) -> nn.Module | None:
    """The norm over tokens that ends the tower; it stands behind the pooling where timm's ``norm`` is the identity."""
    for name in ("norm", "fc_norm") if is_vit(tower) else ():
        module = getattr(tower, name, None)
        if module is not None and not isinstance(module, nn.Identity):
            return module
    return None


def table_prefix(tower: nn.Module) -> int:
    """Entries of the position table that belong to class and register tokens."""
    return 0 if getattr(tower, "no_embed_class", False) else tower.num_prefix_tokens


def facts_of(entry: Entry, built: Built, sequence_length: int | None) -> EncoderFacts:
    """All that heads and records need to know of the built model."""
    from timm.data import resolve_model_data_config

    tower = built.tower
    statistics = resolve_model_data_config(tower)
    prefix, pooled, native, kernel = (), "mean", None, None
    if is_vit(tower):
        holder = tower.embeds if is_naflex(tower) else tower
        classes = int(getattr(holder, "cls_token", None) is not None)
        prefix = ("class",) * classes + ("register",) * (tower.num_prefix_tokens - classes)
        has_attention_pool = getattr(tower, "attn_pool", None) is not None
        # a class token that is kept but not pooled (CLIPA) shows in the catalogue alone
        pooled = entry.pooled or ("map" if has_attention_pool else "class" if classes else "mean")
        if is_naflex(tower):
            if tower.embeds.pos_embed is not None:
                native, kernel = tuple(tower.embeds.pos_embed.shape[1:3]), _naflex_kernel(tower)
        elif getattr(tower, "pos_embed", None) is not None and getattr(tower, "dynamic_img_size", False):
            native, kernel = tuple(tower.patch_embed.grid_size), "bicubic, antialias"
    pooled_width = getattr(tower, "head_hidden_size", None) or tower.num_features
    aligned = pooled_width if built.projection is None else built.projection.out_features
    # a file of the image tower alone lacks the projection
    has_texts = entry.text and is_vit(tower) and (built.projection is not None or entry.embed_dim == entry.width)
    return EncoderFacts(
        name=entry.name,
        fingerprint=built.fingerprint,
        widths=tuple(info["num_chs"] for info in tower.feature_info),
        strides=tuple(info["reduction"] for info in tower.feature_info),
        prefix=prefix,
        pooled=pooled,
        pooled_width=pooled_width,
        final_norm=final_norm(tower) is not None,
        mean=tuple(statistics["mean"]),
        std=tuple(statistics["std"]),
        native_grid=native,
        position_kernel=kernel,
        parameters=sum(p.numel() for p in tower.parameters()),
        aligned_width=aligned if has_texts else None,
        sequence_length=sequence_length,
    )


def padded(facts: EncoderFacts, size: Size) -> Size:
    """What an image of ``size`` pixels becomes inside the encoder."""
    if facts.sequence_length is not None:
        return tuple(side * facts.multiple for side in grid_of(size, facts.multiple, facts.sequence_length))
    return tuple(-(-side // facts.multiple) * facts.multiple for side in size)


def _naflex_kernel(tower: nn.Module) -> str:
    embeds = tower.embeds
    return embeds.pos_embed_interp_mode + ", antialias" * embeds.pos_embed_antialias
