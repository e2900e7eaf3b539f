"""What passes through towers that may train cost, there and back, from shapes alone; see ``flops.py``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from siglip2_dense.contracts import Size
from siglip2_dense.encoders.catalogue import find
from siglip2_dense.encoders.facts import final_norm, is_naflex, is_vit
from siglip2_dense.encoders.text_towers import create, plan_of
from siglip2_dense.engine.flops import BATCH, Bare, Traced, blank_features, traced
from siglip2_dense.errors import UserError

FLOAT = 4  # bytes of a weight, of a gradient, and of what is carried from block to block, whatever the precision
PER_WIDTH = 16  # numbers that the products of a block take and give, for each unit of width: D + 3D, 2D, D + 4D, 4D + D


class Tower(NamedTuple):
    """Operations and bytes are those of one image or text."""

    parameters: int
    trained: int  # parameters that train and are reached
    around: int  # parameters beside the blocks
    block: int  # and those of the largest block
    forward: int  # operations
    training: int  # operations forward and, if it trains, back, with what is computed again
    kept: int  # bytes for the way back


def image_tower(encoder: Bare, settings: dict, size: Size, number: int) -> Tower:
    """Of a transformer at this size; number: bytes of what blocks compute. Raises UserError for other encoders, and
    for towers of which parts train.
    """
    tower, facts = encoder
    if not is_vit(tower) or is_naflex(tower):
        raise UserError(f"the plan is of transformers on squares, which {facts.name} is not; name another encoder.")
    trains = _trains(settings, "encoder")
    again = trains and settings.get("checkpointing", False)
    tower.requires_grad_(trains)
    tower.set_grad_checkpointing(again)
    pixels, norm = torch.empty(1, 3, *size, device="meta"), final_norm(tower)

    def run() -> list[torch.Tensor]:
        how = dict(indices=[facts.num_blocks - 1], intermediates_only=True, stop_early=True, output_fmt="NLC")
        (last,) = tower.forward_intermediates(pixels, **how)
        return [last if norm is None else norm(last)]

    found = traced(run, tower.parameters())
    tokens = found.outputs[0].shape[1] + tower.num_prefix_tokens
    layers = [layer for layer in tower.blocks[-1].modules() if isinstance(layer, nn.Linear)]
    inside = tokens * number * sum(layer.in_features + layer.out_features for layer in layers)
    kept = inside  # of one block: the only one that runs, or that is computed again
    if trains:
        kept = inside + len(tower.blocks) * tokens * facts.widths[-1] * FLOAT if again else len(tower.blocks) * inside
    return _tower(tower, list(tower.blocks), found, 1, kept)


def text_tower(settings: dict, number: int) -> Tower:
    """settings: of the text encoder, with its name. The rest is as for ``image_tower``."""
    about, trains = plan_of(find(settings["name"]), settings.get("model_args")), _trains(settings, "text")
    with torch.device("meta"):
        tower = create(about).requires_grad_(trains)
    ids = torch.zeros(BATCH, about.rules.context, dtype=torch.int64, device="meta")
    again = trains and settings.get("checkpointing", False)
    found = traced(lambda: [checkpoint(tower, ids, use_reentrant=False) if again else tower(ids)], tower.parameters())
    inside = about.rules.context * PER_WIDTH * about.config["width"] * number
    return _tower(tower, [], found, BATCH, inside * (about.config.get("layers", 12) if trains else 1))


def head_passes(head: nn.Module, encoder: Bare, size: Size, queries: int, image: Tower, text: Tower) -> Traced:
    """One image through a head of OWL-ViT, with the scores of so many queries; the first output are its boxes.

    Computed, on a CPU: it is small, and the head says what is float32 in a way that the meta device does not have.
    """
    facts = encoder.facts
    features = blank_features(facts, head.taps, False, size, 1, "cpu")
    for tensor in features.maps.values():
        tensor.requires_grad_(image.trained > 0)
    texts = torch.empty(queries, facts.aligned_width, requires_grad=text.trained > 0)

    def run() -> list[torch.Tensor]:
        raw = head(features, [texts])
        return [raw.boxes, raw.logits()]

    return traced(run, [*head.parameters(), *features.maps.values(), texts])


def _tower(tower: nn.Module, blocks: list[nn.Module], found: Traced, count: int, kept: int) -> Tower:
    parameters = sum(p.numel() for p in tower.parameters())
    of_blocks = [sum(p.numel() for p in block.parameters()) for block in blocks]
    return Tower(
        parameters=parameters,
        trained=sum(p.numel() for p in tower.parameters() if p.grad is not None),
        around=parameters - sum(of_blocks),
        block=max(of_blocks, default=0),
        forward=found.forward // count,
        training=(found.forward + found.backward) // count,
        kept=kept,
    )


def _trains(settings: dict, tower: str) -> bool:
    trainable = settings.get("trainable", "none")
    if trainable not in ("none", "all"):
        raise UserError(
            f"model.{tower}.trainable={trainable!r}: the plan of OWL-ViT is of towers that train whole, or not at all; "
            "give 'all' or 'none'."
        )
    return trainable == "all"
