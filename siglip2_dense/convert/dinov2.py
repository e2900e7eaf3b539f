"""DINOv2's linear segmentation, linear depth and DPT depth heads (facebookresearch/dinov2, hub and README).

They are of mmsegmentation and of a depth toolbox built on it, so their names begin with ``decode_head``. They were
trained on the encoders without register tokens.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.convert.published import (
    Published,
    Wishes,
    check_encoder,
    depth_task,
    module_names,
    segmentation_task,
)
from siglip2_dense.errors import UserError

PREFIX = "decode_head."
SEGMENTATION = {"bn": "bn", "conv": "conv_seg"}
LINEAR_DEPTH = {"conv": "conv_depth"}
DPT = {
    **module_names(
        {
            "levels.{i}.readout": "reassemble_blocks.readout_projects.{i}.0",
            "levels.{i}.project": "reassemble_blocks.projects.{i}.conv",
            "levels.{i}.resize": "reassemble_blocks.resize_layers.{i}",
            "levels.{i}.reduce": "convs.{i}.conv",
            "fusion.{i}.skip.first": "fusion_blocks.{i}.res_conv_unit1.conv1.conv",
            "fusion.{i}.skip.second": "fusion_blocks.{i}.res_conv_unit1.conv2.conv",
            "fusion.{i}.unit.first": "fusion_blocks.{i}.res_conv_unit2.conv1.conv",
            "fusion.{i}.unit.second": "fusion_blocks.{i}.res_conv_unit2.conv2.conv",
            "fusion.{i}.out": "fusion_blocks.{i}.project.conv",
        }
    ),
    "project": "project.conv",
    "refine.0": "conv_depth.head.0",
    "refine.1": "conv_depth.head.2",
    "output": "conv_depth.head.4",
}


def recognises(tensors: dict[str, Tensor]) -> bool:
    return any(name.startswith(PREFIX) for name in tensors)


def heads(tensors: dict[str, Tensor], facts: EncoderFacts, source: str | Path, wishes: Wishes) -> list[Published]:
    """The one head of a checkpoint. Raises UserError for another kind, or an encoder it cannot be of."""
    check_encoder(facts, "dinov2", ("class",), source)
    kinds = {"conv_seg.weight": _segmentation, "conv_depth.weight": _linear_depth, "conv_depth.head.4.weight": _dpt}
    for name, kind in kinds.items():
        if PREFIX + name in tensors:
            return [kind(tensors, facts, source, wishes)]
    raise UserError(
        f"{source} is none of DINOv2's linear segmentation, linear depth and DPT depth heads (none of "
        f"{', '.join(PREFIX + name for name in kinds)} is in it); others are not converted."
    )


def _segmentation(tensors, facts, source, wishes) -> Published:
    count, width = tensors[PREFIX + "conv_seg.weight"].shape[:2]
    four = _is_of_four_layers(width, facts.widths[-1], "conv_seg", facts, source)
    return Published(
        name="segmentation",
        what=f"DINOv2's linear segmentation head of {'four layers' if four else 'one layer'}",
        head=dict(type="LinearHead", layers="last4" if four else "last", norm=True),
        task=segmentation_task(count, wishes, source),
        tensors=tensors,
        named=_namer(SEGMENTATION),
    )


def _linear_depth(tensors, facts, source, wishes) -> Published:
    count, width = tensors[PREFIX + "conv_depth.weight"].shape[:2]
    four = _is_of_four_layers(width, 2 * facts.widths[-1], "conv_depth", facts, source)
    layers = _quarters(facts) if four else "last"
    return Published(
        name="depth",
        what=f"DINOv2's linear depth head of {'four layers' if four else 'one layer'}",
        head=dict(type="LinearHead", layers=layers, norm=False, pooled="concat", batch_norm=False, upsample=4),
        task=depth_task(count, 0.1, _max_depth(wishes, source), source),
        tensors=tensors,
        named=_namer(LINEAR_DEPTH),
    )


def _dpt(tensors, facts, source, wishes) -> Published:
    return Published(
        name="depth",
        what="DINOv2's DPT depth head",
        head=dict(
            type="DPTHead",
            layers=_quarters(facts),
            norm=False,
            pooled="readout",
            width=256,
            activation="relu",
            gelu="exact",
            output="convolutions",
        ),
        task=depth_task(1, 0.1, _max_depth(wishes, source), source),
        tensors=tensors,
        named=_namer(DPT),
    )


def _is_of_four_layers(width: int, of_one: int, name: str, facts: EncoderFacts, source: str | Path) -> bool:
    if width not in (of_one, 4 * of_one):
        raise UserError(
            f"{source}: {PREFIX}{name} reads {width} channels, which is neither one layer of {facts.name} ({of_one}) "
            f"nor four ({4 * of_one}); give the --encoder it was trained on."
        )
    return width == 4 * of_one


def _quarters(facts: EncoderFacts) -> str | list[int]:
    """The blocks of its heads of four layers: the ends of the quarters, but for the first of the large encoder."""
    return [4, 11, 17, 23] if facts.num_blocks == 24 else "even4"


def _max_depth(wishes: Wishes, source: str | Path) -> float:
    if wishes.max_depth is None:
        raise UserError(f"{source} does not say its range of depths: give --max-depth, 10 for NYUv2, 80 for KITTI.")
    return wishes.max_depth


def _namer(modules: dict[str, str]):
    def named(ours: str) -> str:
        module, _, leaf = ours.rpartition(".")
        return f"{PREFIX}{modules[module]}.{leaf}"

    return named
