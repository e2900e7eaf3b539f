"""What a pass through an encoder and its heads costs, from shapes alone: nothing is computed and no weights are needed.

A multiplication and an addition are two operations, as in torch's ``FlopCounterMode``; norms, activations, softmax and
interpolation are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from siglip2_dense.contracts import EncoderFacts, Features, Geometry, Size, Tap
from siglip2_dense.encoders.catalogue import find
from siglip2_dense.encoders.facts import facts_of, is_naflex, is_vit, padded
from siglip2_dense.encoders.frozen import SEQUENCE_LENGTH
from siglip2_dense.encoders.weights import Built, create

BATCH = 2  # of the heads' passes: batch norm refuses single vectors


class Bare(NamedTuple):
    """An encoder without values."""

    tower: nn.Module
    facts: EncoderFacts  # without a fingerprint


class EncoderCost(NamedTuple):
    """Of one image."""

    parts: dict[str, int]
    """Operations. Of transformers "patches", "projections" (queries, keys, values and outputs), "attention" (quadratic
    in the number of tokens), "mlp" and "pooling"; of others "network"."""
    live: int  # about how many numbers are held at once
    moved: int = (
        0  # numbers that the layers of other networks read and write; in transformers the products outweigh them
    )

    @property
    def operations(self) -> int:
        return sum(self.parts.values())


class HeadCost(NamedTuple):
    """Of one image."""

    forward: int  # operations
    training: int  # operations, forward and backward
    kept: int  # bytes kept for the backward pass, without the features
    raw: int  # bytes of the raw maps


def bare_encoder(config: dict) -> Bare:
    """The encoder of a config, on torch's meta device."""
    entry = find(config["name"])
    with torch.device("meta"):
        tower = create(entry, config.get("model_args"))
        projection = tower.get_classifier() if entry.embed_dim else None
        projection = projection if isinstance(projection, nn.Linear) else None
        if projection is not None:  # it is not part of the tower, and its pass is none of a probe's
            tower.reset_classifier(0)
    length = config.get("sequence_length") or SEQUENCE_LENGTH if is_naflex(tower) else None
    return Bare(tower, facts_of(entry, Built(tower, projection, ""), length))


def encoder_cost(encoder: Bare, size: Size, taps: Sequence[Tap], pooled: bool) -> EncoderCost:
    """Of an image of ``size`` pixels, up to the last block that is asked for."""
    tower, facts = encoder
    size = padded(facts, size)
    depth = facts.num_blocks if pooled else 1 + max(tap.block for tap in taps)
    if not is_vit(tower):
        return _counted(tower, size, depth)
    blocks = tower.blocks[:depth]
    stem = tower.embeds.proj if is_naflex(tower) else getattr(tower.patch_embed, "proj", None)
    if getattr(stem, "weight", None) is None or not all(hasattr(block, "attn") for block in blocks):
        return _counted(tower, size, depth)
    cells = math.prod(size) // facts.multiple**2
    tokens = cells + tower.num_prefix_tokens
    parts = {"patches": 2 * cells * stem.weight.numel(), "projections": 0, "attention": 0, "mlp": 0, "pooling": 0}
    widest = 0
    for block in blocks:
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                part = "projections" if name.startswith("attn.") else "mlp"
                parts[part] += 2 * tokens * layer.weight.numel()
                widest = max(widest, layer.out_features)
        parts["attention"] += 4 * tokens**2 * block.attn.proj.in_features  # the scores, and the values they weigh
    pool = getattr(tower, "attn_pool", None)
    if pooled and pool is not None:
        for name, layer in pool.named_modules():
            if isinstance(layer, nn.Linear):
                parts["pooling"] += 2 * (tokens if name == "kv" else pool.latent_len) * layer.weight.numel()
        parts["pooling"] += 4 * tokens * pool.latent_len * pool.proj.in_features
    # what is carried around the block, and the widest layer's output before and after its activation
    return EncoderCost(parts, tokens * (facts.widths[-1] + 2 * widest))


def _counted(tower: nn.Module, size: Size, depth: int) -> EncoderCost:
    """Of a network of any kind, up to its block or stage ``depth``, by letting shapes pass through it."""
    widest = moved = 0

    def look(layer, given, made) -> None:
        nonlocal widest, moved
        numbers = sum(value.numel() for value in (*given, made) if isinstance(value, torch.Tensor))
        widest, moved = max(widest, numbers), moved + numbers

    hooks = [layer.register_forward_hook(look) for layer in tower.modules() if not list(layer.children())]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            pixels = torch.empty(1, 3, *size, device="meta")
            tower.forward_intermediates(pixels, indices=[depth - 1], intermediates_only=True, stop_early=True)
    finally:
        for hook in hooks:
            hook.remove()
    return EncoderCost({"network": counter.get_total_flops()}, widest, moved)


def blank_features(
    facts: EncoderFacts, taps: Sequence[Tap], pooled: bool, size: Size, batch: int, device: str = "meta"
) -> Features:
    """Features of images of ``size`` pixels, in shape as the encoder gives them, of whatever values."""
    size = padded(facts, size)
    maps, prefix = {}, {}
    for tap in taps:
        grid = (side // facts.strides[tap.block] for side in size)
        maps[tap] = torch.empty(batch, facts.widths[tap.block], *grid, device=device)
        prefix[tap] = torch.empty(batch, len(facts.prefix), facts.widths[tap.block], device=device)
    geometry = (Geometry(size, (0, 0, *size), size, size, size),) * batch
    vector = torch.empty(batch, facts.pooled_width, device=device) if pooled else None
    return Features(maps, geometry, prefix if facts.prefix else None, vector)


class Traced(NamedTuple):
    """Of a pass without values."""

    forward: int  # operations, and those of the way back, with what is computed again there
    backward: int
    kept: int  # bytes kept for the way back
    outputs: list[torch.Tensor]


def traced(run: Callable[[], Sequence[torch.Tensor]], own: Iterable[torch.Tensor]) -> Traced:
    """A pass, and the way back from the sum of its outputs if there is one.

    own: what is there anyway, parameters and features.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with forward:
            outputs = run()
        total = sum(one.sum() for one in outputs)
        if total.requires_grad:
            with backward:
                total.backward()
    for tensor in own:
        kept.pop(tensor.untyped_storage()._cdata, None)
    held = sum(storage.nbytes() for storage in kept.values())
    return Traced(forward.get_total_flops(), backward.get_total_flops(), held, outputs)


def head_cost(heads: Sequence[nn.Module], features: Features) -> HeadCost:
    """Of heads on the meta device that are computed together, for one of the images of ``features``."""

    def run() -> Sequence[torch.Tensor]:
        return heads[0].together(heads, features) if len(heads) > 1 else [heads[0](features)]

    for head in heads:
        head.train()
    own = [tensor for head in heads for tensor in (*head.parameters(), *head.buffers())]
    found = traced(run, [*own, *features.maps.values()])
    count, maps = len(features), sum(one.nbytes for one in found.outputs)
    once, back = found.forward // count, found.backward // count
    return HeadCost(once, once + back, found.kept // count, maps // count)
