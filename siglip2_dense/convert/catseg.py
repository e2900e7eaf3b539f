"""Published checkpoints of CAT-Seg (cvlab-kaist/CAT-Seg, CVPR version) on CLIP ViT-B/16 and L/14 at 336 pixels.

They hold the whole model. Of CLIP, the projections of queries and values in both towers were trained, and these go into
the head file; the rest must be what the encoder has already, which is checked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from siglip2_dense.convert.checkpoint import read_checkpoint
from siglip2_dense.errors import UserError
from siglip2_dense.files import digest
from siglip2_dense.head_file import HeadFile, describe, describe_model, describe_text
from siglip2_dense.registry import MODELS, build

CLIP, AGGREGATOR = "sem_seg_head.predictor.clip_model.", "sem_seg_head.predictor.transformer."
ENCODERS = {768: "clip-base-16-224", 1024: "clip-large-14-336"}  # by the width of the image tower
HEAD = "segmentation"
NEAR = 1e-3  # part of its largest weight by which a tensor that was not trained may differ: half precision somewhere
BLOCK = {
    "norm1": "norm1", "norm2": "norm2", "q": "attn.q", "k": "attn.k", "v": "attn.v", "proj": "attn.proj",
    "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip
CLASSES = {
    "norm1": "norm1", "norm2": "norm2", "q": "attention.q", "k": "attention.k", "v": "attention.v", "fc1": "MLP.0",
    "fc2": "MLP.2",
}  # fmt: skip
UP = {
    "finer": "up", "conv1": "conv.double_conv.0", "norm1": "conv.double_conv.1", "conv2": "conv.double_conv.3",
    "norm2": "conv.double_conv.4",
}  # fmt: skip
MODULES = {  # ours: theirs, {i} standing for a layer
    "embed": f"{AGGREGATOR}conv1",
    "appearance": f"{AGGREGATOR}guidance_projection.0",
    "words": f"{AGGREGATOR}text_guidance_projection.0",
    "guide1.0": "upsample1",
    "guide1.1": f"{AGGREGATOR}decoder_guidance_projection.0.0",
    "guide2.0": "upsample2",
    "guide2.1": f"{AGGREGATOR}decoder_guidance_projection.1.0",
    "decoder.score": f"{AGGREGATOR}head",
    "layers.{i}.spatial.guidance_norm": f"{AGGREGATOR}layers.{{i}}.swin_block.guidance_norm",
    **{f"layers.{{i}}.spatial.plain.{a}": f"{AGGREGATOR}layers.{{i}}.swin_block.block_1.{b}" for a, b in BLOCK.items()},
    **{
        f"layers.{{i}}.spatial.shifted.{a}": f"{AGGREGATOR}layers.{{i}}.swin_block.block_2.{b}"
        for a, b in BLOCK.items()
    },
    **{f"layers.{{i}}.classes.{a}": f"{AGGREGATOR}layers.{{i}}.attention.{b}" for a, b in CLASSES.items()},
    **{f"decoder.up{n}.{a}": f"{AGGREGATOR}decoder{n}.{b}" for n in (1, 2) for a, b in UP.items()},
}
TOKENS = {"filler": "padding_tokens", "filler_guidance": "padding_guidance"}  # of classes
LEFT = {  # pattern: why it is left
    r".*\.attn_mask": "follows from the grid",
    re.escape(CLIP) + "logit_scale": "the cosines are not scaled",
}


class Line(NamedTuple):
    """What became of a tensor of the checkpoint."""

    name: str
    used: bool
    as_what: str  # our name of it, or why it is left


def recognises(tensors: dict[str, Tensor]) -> bool:
    return f"{AGGREGATOR}conv1.weight" in tensors


def convert(source: str | Path, encoder: str | None = None, weights: str = "hub") -> tuple[HeadFile, list[Line]]:
    """The content of a head file for a published checkpoint, and what became of each of its tensors.

    encoder: by default the one that the shapes tell. weights: of both its towers, where training started: "hub", or a
    file or folder; the checkpoint itself will do, and must then be named wherever the head file is used.
    Raises UserError for another kind of file, and for one whose CLIP differs from the encoder in more than queries and
    values.
    """
    tensors = read_checkpoint(source)
    if not recognises(tensors):
        raise UserError(
            f"{source} is no checkpoint of CAT-Seg's CVPR version (its first tensor is "
            f"{next(iter(tensors), 'missing')!r}); give model_base.pth or model_large.pth as its authors publish them."
        )
    config = model_config(encoder or _encoder_of(tensors, source), weights)
    model = build(MODELS, config)
    head, task = model.heads[HEAD], model.tasks[HEAD]
    loaded, report = {}, []
    for ours, wanted in head.state_dict().items():
        theirs = named(ours)
        if theirs not in tensors:
            raise UserError(f"{source} has no tensor {theirs!r}; fetch it again.")
        tensor = tensors[theirs]
        if tensor.numel() != wanted.numel() or tensor.squeeze().shape != wanted.squeeze().shape:
            raise UserError(
                f"{source}: {theirs!r} is {tuple(tensor.shape)}, which on {model.facts.name} would be "
                f"{tuple(wanted.shape)}; give the --encoder it was trained on."
            )
        loaded[f"{HEAD}.{ours}"] = tensor.to(wanted.dtype).reshape(wanted.shape).clone()
        report.append(Line(theirs, True, f"{HEAD}.{ours}"))
    for name, settings in (("encoder", config["encoder"]), ("text", {**model.texts, "trainable": ["q", "v"]})):
        loaded |= _trained(name, model.towers[name], settings, source)
    for name, tensor in loaded.items():
        if not tensor.isfinite().all():
            raise UserError(f"{source}: what becomes {name!r} holds NaN or infinity; fetch it again.")
    used = {line.name for line in report}
    report += [_line(name, model.facts.num_blocks) for name in tensors if name not in used]
    parts = config["heads"][HEAD]
    content = HeadFile(
        tensors=loaded,
        encoder=model.facts,
        encoder_config=config["encoder"],
        heads={HEAD: describe(head, task, parts)},
        protocol={
            "origin": {
                "file": Path(source).name,
                "sha256": digest(source),
                "heads": {HEAD: f"CAT-Seg (CVPR version) on {model.facts.name}"},
                "note": "trained and published by others; converted, not trained here",
            }
        },
        metrics={},
        step=0,
        text=describe_text(model),
        model=describe_model(dict(model=config)),
    )
    return content, report


def model_config(encoder: str, weights: str = "hub") -> dict:
    """The model of the published training. CLIP's positions are resampled without antialiasing, class names written as
    they are.
    """
    trains = dict(trainable=["q", "v"])
    return dict(
        type="CATSeg",
        encoder=dict(type="FrozenEncoder", name=encoder, weights=weights, position_kernel="bicubic", **trains),
        text=dict(trains),
        encoder_optim=dict(lr_mult=0.01),
        heads={
            HEAD: dict(
                head=dict(type="CATSegHead"), task=dict(type="OpenVocabulary", classes="coco_stuff", clean_names=False)
            )
        },
    )


def named(ours: str) -> str:
    """The checkpoint's name of a tensor of our head."""
    module, _, leaf = ours.rpartition(".")
    number = re.match(r"layers\.(\d+)\.", ours)
    number = number[1] if number else ""
    if leaf in TOKENS:
        return f"{AGGREGATOR}layers.{number}.attention.{TOKENS[leaf]}"
    pattern = module.replace(f"layers.{number}.", "layers.{i}.", 1) if number else module
    return f"{MODULES[pattern].replace('{i}', number)}.{leaf}"


def _encoder_of(tensors: dict[str, Tensor], source: str | Path) -> str:
    width = tensors[f"{CLIP}visual.conv1.weight"].shape[0] if f"{CLIP}visual.conv1.weight" in tensors else None
    if width not in ENCODERS:
        raise UserError(f"{source}: its image tower is {width} wide; CLIP B/16 (768) and L/14 (1024) are known.")
    return ENCODERS[width]


def _trained(name: str, own, settings: dict, source: str | Path) -> dict[str, Tensor]:
    """What was trained of a tower, by our names, from the checkpoint; all else must be as in our own tower."""
    known = {key: value for key, value in settings.items() if key not in ("fingerprint", "tokenization")}
    theirs = _state(build(MODELS, {**known, "weights": str(source)}))
    trained = set(own.trained.state_dict())
    for key, tensor in _state(own).items():
        last = key.endswith(".q") and key not in trained  # trained by its authors, but its gradient was 0
        if key in trained or last or not tensor.is_floating_point():
            continue
        if not (tensor - theirs[key]).abs().max() <= NEAR * theirs[key].abs().max():  # nor where one is no number
            raise UserError(
                f"{source}: its CLIP differs from {name} in {key!r}, which training leaves as it was; give the weights "
                "it was trained from, --weights FILE, or the checkpoint itself."
            )
    return {f"{name}.{key}": theirs[key].clone() for key in own.trained.state_dict()}


def _state(tower) -> dict[str, Tensor]:
    """Of an image or text encoder, with the projection that the image tower itself has not."""
    projection = getattr(tower, "projection", None)
    own = {} if projection is None else {f"projection.{key}": value for key, value in projection.state_dict().items()}
    return {**tower.tower.state_dict(), **own}


def _line(name: str, blocks: int) -> Line:
    for pattern, why in LEFT.items():
        if re.fullmatch(pattern, name):
            return Line(name, False, why)
    if not name.startswith(CLIP):
        raise UserError(
            f"the checkpoint holds {name!r}, which a published CAT-Seg has not; such files are not converted."
        )
    if re.search(r"\.attn\.[qv]_proj_weight$", name):
        if f"visual.transformer.resblocks.{blocks - 1}.attn.q_proj" in name:
            return Line(name, False, "the last block of the image tower has values alone")
        tower = "encoder" if ".visual." in name else "text"
        return Line(name, True, f"{tower}: {name.removeprefix(CLIP)}")
    return Line(name, False, "is the encoder's own")
