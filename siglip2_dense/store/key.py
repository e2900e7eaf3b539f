"""What stored features are of, as plain data: whatever would change them is in it, or they would be mistaken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch

from siglip2_dense.contracts import Alignment, EncoderFacts, Size, Tap

FORMAT = "siglip2_dense features, version 2"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def make_key(
    facts: EncoderFacts,
    encoder: dict,
    taps: Sequence[Tap],
    pooled: bool,
    aligned: Alignment | None,
    dtype: str,
    data: dict,
    seed: int | None,
    canvas: Size | None = None,
    windows: dict | None = None,
) -> dict:
    """The key of the features of one data set, as JSON has it.

    encoder: what changes the maps beside the weights: precision and arguments of the model. data: name, split, number
    of images, fingerprint, and the settings it was built with, transforms included. seed: of what the transforms draw,
    none where they draw nothing. canvas: of training images. windows: of evaluation, the inference's mode, crop, stride
    and flip; none for training. How many views there are is no part of it: view k of an image is the same whatever
    others are stored.
    """
    key = dict(
        encoder={**encoder, **facts.to_dict()},
        taps=sorted(set(taps)),
        pooled=pooled,
        aligned=None if aligned is None else asdict(aligned),
        dtype=dtype,
        data=data,
        seed=seed,
        canvas=canvas,
        windows=windows,
    )
    return json.loads(json.dumps(key, default=str))


def digest(key: dict) -> str:
    """Twelve hexadecimal digits that stand for a key, and for how files are written."""
    return hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:12]


def covers(held: dict, wanted: dict) -> bool:
    """Whether features of the key ``held`` serve where ``wanted`` are asked for: the same, or more taps of the same."""
    if not all(tap in held["taps"] for tap in wanted["taps"]) or held["pooled"] < wanted["pooled"]:
        return False
    return {**held, "taps": wanted["taps"], "pooled": wanted["pooled"]} == wanted


def leaves(value: object, place: str = "") -> dict[str, object]:
    """{place: value} of all that a key says, such as {"data.settings.transforms.0.size": [40, 48]}."""
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        inner = enumerate(value)
    else:
        return {place: value}
    return {deep: leaf for name, one in inner for deep, leaf in leaves(one, f"{place}.{name}".strip(".")).items()}


def taps_of(key: dict) -> list[Tap]:
    return [Tap(block, norm) for block, norm in key["taps"]]
