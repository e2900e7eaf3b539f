"""TIPS v2's DPT heads for segmentation, depth and normals (google-deepmind/tips, ``pytorch/decoders.py``).

They are published twice: one a file, as arrays of Flax, and all three in a safetensors file with the encoder, which is
left out here. They read the first of two class tokens; timm calls the second a register.
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

FLAX_OUTPUTS = {  # the last layer's name -> whose head it ends
    "pixel_segmentation": "segmentation",
    "segmentation_head": "segmentation",
    "pixel_depth_classif": "depth",
    "pixel_depth_regress": "depth",
    "pixel_normals": "normals",
}
FLAX = {
    **module_names(
        {
            "levels.{i}.readout": "reassemble_blocks/readout_projects_{i}",
            "levels.{i}.project": "reassemble_blocks/out_projection_{i}",
            "levels.{i}.resize": "reassemble_blocks/resize_layers_{i}",
            "levels.{i}.reduce": "convs_{i}",
            "fusion.{i}.skip.first": "fusion_blocks_{i}/PreActResidualConvUnit_0/conv1",
            "fusion.{i}.skip.second": "fusion_blocks_{i}/PreActResidualConvUnit_0/conv2",
            "fusion.{i}.unit.first": "fusion_blocks_{i}/PreActResidualConvUnit_1/conv1",
            "fusion.{i}.unit.second": "fusion_blocks_{i}/PreActResidualConvUnit_1/conv2",
            "fusion.{i}.out": "fusion_blocks_{i}/Conv_0",
        }
    ),
    # the deepest block has no skip, and Flax numbers what there is
    "fusion.0.unit.first": "fusion_blocks_0/PreActResidualConvUnit_0/conv1",
    "fusion.0.unit.second": "fusion_blocks_0/PreActResidualConvUnit_0/conv2",
    "project": "project",
}
TORCH = {
    **module_names(
        {
            "levels.{i}.readout": "reassemble.readout_projects.{i}",
            "levels.{i}.project": "reassemble.out_projections.{i}",
            "levels.{i}.resize": "reassemble.resize_layers.{i}",
            "levels.{i}.reduce": "convs.{i}",
            "fusion.{i}.skip.first": "fusion_blocks.{i}.residual_unit.conv1",
            "fusion.{i}.skip.second": "fusion_blocks.{i}.residual_unit.conv2",
            "fusion.{i}.unit.first": "fusion_blocks.{i}.main_unit.conv1",
            "fusion.{i}.unit.second": "fusion_blocks.{i}.main_unit.conv2",
            "fusion.{i}.out": "fusion_blocks.{i}.out_conv",
        }
    ),
    "project": "project",
}
TASKS = ("segmentation", "depth", "normals")
MIN_DEPTH = 1e-3  # also the weight that a bin has at least


def recognises(tensors: dict[str, Tensor]) -> bool:
    return _is_flax(tensors) or any(f"{task}_head.{task}_head.weight" in tensors for task in TASKS)


def heads(tensors: dict[str, Tensor], facts: EncoderFacts, source: str | Path, wishes: Wishes) -> list[Published]:
    """The heads of a checkpoint. Raises UserError for an encoder they cannot be of, or a wrong number of outputs."""
    check_encoder(facts, "tipsv2", ("class", "register"), source)
    if _is_flax(tensors):
        return [_of_flax(tensors, source, wishes)]
    return [_of_torch(tensors, task, source, wishes) for task in TASKS if f"{task}_head.{task}_head.weight" in tensors]


def _is_flax(tensors: dict[str, Tensor]) -> bool:
    return any("reassemble_blocks/" in name for name in tensors)


def _of_flax(tensors: dict[str, Tensor], source: str | Path, wishes: Wishes) -> Published:
    shared = next(name for name in tensors if "reassemble_blocks/" in name).partition("reassemble_blocks/")[0]
    outer = shared.removesuffix("dpt/")
    output = next((name for name in FLAX_OUTPUTS if f"{outer}{name}/kernel" in tensors), None)
    if output is None:
        raise UserError(f"{source} has no output layer of TIPS v2 ({', '.join(FLAX_OUTPUTS)}); fetch it again.")
    leaves = {"weight": "kernel", "bias": "bias"}

    def named(ours: str) -> str:
        module, _, leaf = ours.rpartition(".")
        path = outer + output if module == "output" else shared + FLAX[module]
        return f"{path}/{leaves[leaf]}"

    count = tensors[f"{outer}{output}/kernel"].shape[-1]
    return _published(FLAX_OUTPUTS[output], count, tensors, named, source, wishes, _turned)


def _turned(name: str, tensor: Tensor) -> Tensor:
    """A Flax kernel, input and output channels last, in torch's order."""
    if name.endswith("/bias"):
        return tensor
    if tensor.dim() == 2:
        return tensor.T
    if (
        "resize_layers_0/" in name or "resize_layers_1/" in name
    ):  # transposed convolutions: Flax's see a mirrored kernel
        return tensor.flip(0, 1).permute(2, 3, 0, 1)
    return tensor.permute(3, 2, 0, 1)


def _of_torch(tensors: dict[str, Tensor], task: str, source: str | Path, wishes: Wishes) -> Published:
    prefix = f"{task}_head."

    def named(ours: str) -> str:
        module, _, leaf = ours.rpartition(".")
        return f"{prefix}{f'{task}_head' if module == 'output' else TORCH[module]}.{leaf}"

    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    count = len(own[f"{prefix}{task}_head.weight"])
    return _published(task, count, own, named, source, wishes)


def _published(task, count, tensors, named, source, wishes, *turned) -> Published:
    if task == "segmentation":
        meant = segmentation_task(count, wishes, source)
    elif task == "depth":
        meant = depth_task(count, MIN_DEPTH, wishes.max_depth or 10.0, source)
    elif count == 3:
        meant = dict(type="Normals", uncertainty=False)
    else:
        raise UserError(f"{source} has {count} outputs for normals; published heads have 3.")
    head = dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=256)
    if task == "depth" and wishes.activation != "none":
        head["activation"] = "relu"
    return Published(task, f"TIPS v2's {task} head", head, meant, tensors, named, *turned)
