"""OWL-ViT in transformers' layout (``OwlViTForObjectDetection``; the checkpoints google/owlvit-*), in and out.

In: the file goes in whole as the weights of both towers, which know the layout, and the rest of it becomes a head file.
Out: what CLIP's towers are, with a head, becomes a folder that ``from_pretrained`` reads.

transformers' own image processor stretches images to a square, where the models were trained on padded ones; its text
towers have 16 tokens, its position tables go to other sizes without antialiasing.
"""

from __future__ import annotations

import json
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from siglip2_dense.convert.checkpoint import read_checkpoint
from siglip2_dense.errors import UserError
from siglip2_dense.files import atomic, digest, write_text
from siglip2_dense.head_file import HeadFile, describe, describe_model
from siglip2_dense.registry import MODELS, build
from siglip2_dense.resample import resize_positions

HEAD = "detection"
VISION, TEXT = "owlvit.vision_model.", "owlvit.text_model."
MODULES = {  # ours: theirs
    "norm": "layer_norm",
    "classes": "class_head.dense0",
    "shift": "class_head.logit_shift",
    "scale": "class_head.logit_scale",
    "box.0": "box_head.dense0",
    "box.1": "box_head.dense1",
    "box.2": "box_head.dense2",
}
ENCODERS = {(768, 32): "clip-base-32-224", (768, 16): "clip-base-16-224", (1024, 14): "clip-large-14-224"}
BY_PATCH = {patch: name for (_, patch), name in ENCODERS.items()}  # of other widths
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
HEAD_WIDTH = 64  # of an attention head, in all of CLIP's towers


def recognises(tensors: dict[str, Tensor]) -> bool:
    return f"{VISION}embeddings.class_embedding" in tensors and "class_head.dense0.weight" in tensors


def convert(source: str | Path) -> tuple[HeadFile, dict]:
    """The content of a head file, and the model's config, of a checkpoint: its file or folder.

    Where the head file is used, the towers' weights are that checkpoint. Raises UserError for another kind of file.
    """
    path = _file(source)
    tensors = read_checkpoint(path)
    if not recognises(tensors):
        first = next(iter(tensors), "missing")
        raise UserError(
            f"{source} is no OWL-ViT in transformers' layout (its first tensor is {first!r}); give the folder of a "
            "checkpoint google/owlvit-*."
        )
    if "objectness_head.dense0.weight" in tensors:
        raise UserError(f"{source} is OWLv2, whose objectness head is not converted; give an OWL-ViT (v1).")
    config = model_config(tensors, path)
    model = build(MODELS, config)
    head = model.heads[HEAD]
    loaded = {}
    for ours, wanted in head.state_dict().items():
        module, _, leaf = ours.rpartition(".")
        theirs = f"{MODULES[module]}.{leaf}"
        if theirs not in tensors or tensors[theirs].shape != wanted.shape:
            found = tuple(tensors[theirs].shape) if theirs in tensors else "missing"
            raise UserError(f"{source}: {theirs!r} is {found}, not {tuple(wanted.shape)}; fetch the file again.")
        loaded[f"{HEAD}.{ours}"] = tensors[theirs].to(wanted.dtype).clone()
    content = HeadFile(
        tensors=loaded,
        encoder=model.facts,
        encoder_config=config["encoder"],
        heads={HEAD: describe(head, model.tasks[HEAD], config["heads"][HEAD])},
        protocol={
            "origin": {
                "file": path.name,
                "sha256": digest(path),
                "heads": {HEAD: f"OWL-ViT on {model.facts.name}"},
                "note": "trained and published by others; converted, not trained here",
            }
        },
        metrics={},
        step=0,
        model=describe_model(dict(model=config)),
    )
    return content, config


def model_config(tensors: dict[str, Tensor], path: Path) -> dict:
    """The model of a checkpoint, told from its shapes, and from the ``config.json`` beside it where there is one."""
    patches = tensors[f"{VISION}embeddings.patch_embedding.weight"]
    (width, _, patch, _), positions = patches.shape, len(tensors[f"{VISION}embeddings.position_embedding.weight"]) - 1
    name = ENCODERS.get((width, patch)) or BY_PATCH.get(patch)
    if name is None or isqrt(positions) ** 2 != positions:
        raise UserError(
            f"{path}: patches of {patch} pixels in a table of {positions} places are none of CLIP's; such files are "
            "not converted."
        )
    size = isqrt(positions) * patch
    said = path.with_name("config.json")
    said = json.loads(said.read_text()) if said.is_file() else {}
    embed_dim = len(tensors["owlvit.text_projection.weight"])
    image = _sizes(tensors, VISION, said.get("vision_config", {}))
    text = _sizes(tensors, TEXT, said.get("text_config", {}))
    context = len(tensors[f"{TEXT}embeddings.position_embedding.weight"])
    image_args = dict(
        img_size=size, embed_dim=width, depth=image["layers"], num_heads=image["heads"], mlp_ratio=image["mlp_ratio"],
        num_classes=embed_dim,
    )  # fmt: skip
    return dict(
        type="OWLViT",
        encoder=dict(
            type="FrozenEncoder", name=name, weights=str(path), position_kernel="bicubic", model_args=image_args
        ),
        text=dict(model_args=dict(embed_dim=embed_dim, context_length=context, **text)),
        heads={HEAD: dict(head=dict(type="OWLViTHead"), task=dict(type="Detection", classes=["thing"]))},
        inference=dict(mode="square", size=size),
    )


def _sizes(tensors: dict[str, Tensor], prefix: str, said: dict) -> dict:
    act = said.get("hidden_act", "quick_gelu")
    if act != "quick_gelu":
        raise UserError(f"config.json: hidden_act={act!r}; the published checkpoints, and CLIP, have quick_gelu.")
    hidden, width = tensors[f"{prefix}encoder.layers.0.mlp.fc1.weight"].shape
    layers = sum(name.startswith(prefix) and name.endswith("mlp.fc1.weight") for name in tensors)
    heads = said.get("num_attention_heads", width // HEAD_WIDTH)
    return dict(width=width, layers=layers, heads=heads, mlp_ratio=hidden / width)


def _file(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if not path.is_dir():
        return path
    found = [path / name for name in FILES if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} has none of {', '.join(FILES)}; give the folder of a checkpoint, or its file.")
    return found[0]


def export(model: nn.Module, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` of an OWLViT on CLIP's towers.

    The position table is brought to the size of the model's images. Raises UserError for towers that transformers'
    class cannot have.
    """
    from safetensors.torch import save_file

    tensors, config = to_transformers(model)
    with atomic(Path(folder) / "model.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt"})
    write_text(Path(folder) / "config.json", json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def to_transformers(model: nn.Module) -> tuple[dict[str, Tensor], dict]:
    """Tensors by transformers' names, and its config; see ``export``."""
    texts = model.text_encoder()
    image, text, facts = model.encoder.tower, texts.tower, model.facts
    _check(model, texts)
    patch, native = facts.strides[-1], facts.native_grid
    side = model.inference["size"] // patch if model.inference["mode"] == "square" else native[0]
    if model.inference.get("size", 0) % patch:
        raise UserError(
            f"images of {model.inference['size']} pixels are no whole patches of {patch}; set inference.size."
        )
    if side != native[1] and model.inference["mode"] != "square":
        raise UserError(f"transformers has square position tables, not {native}; set model.inference.size.")
    table = resize_positions(image.pos_embed, native, (side, side), 1, facts.position_kernel != "bicubic")
    found = {
        f"{VISION}embeddings.class_embedding": image.cls_token.flatten(),
        f"{VISION}embeddings.patch_embedding.weight": image.patch_embed.proj.weight,
        f"{VISION}embeddings.position_embedding.weight": table[0],
        "owlvit.visual_projection.weight": model.encoder.projection.weight,
        f"{TEXT}embeddings.token_embedding.weight": text.token_embedding.weight,
        f"{TEXT}embeddings.position_embedding.weight": text.positional_embedding,
        "owlvit.text_projection.weight": text.text_projection.T,
        "owlvit.logit_scale": torch.tensor(float(texts.scale or 1.0)).log(),
    }
    _add(found, f"{VISION}pre_layernorm", image.norm_pre)
    _add(found, f"{VISION}post_layernorm", image.norm)
    _add(found, f"{TEXT}final_layer_norm", text.ln_final)
    for number, block in enumerate(image.blocks):
        qkv = block.attn.qkv
        parts = (qkv.weight, qkv.bias, block.attn.proj, block.norm1, block.norm2, block.mlp.fc1, block.mlp.fc2)
        _add_block(found, f"{VISION}encoder.layers.{number}", *parts)
    for number, block in enumerate(text.transformer.resblocks):
        attention, weight = block.attn, block.attn.in_proj_weight
        if weight is None:  # its parts were trained apart
            weight = torch.cat([getattr(attention, f"{part}_proj_weight") for part in "qkv"])
        parts = (
            weight,
            attention.in_proj_bias,
            attention.out_proj,
            block.ln_1,
            block.ln_2,
            block.mlp.c_fc,
            block.mlp.c_proj,
        )
        _add_block(found, f"{TEXT}encoder.layers.{number}", *parts)
    (head,) = model.heads.values()
    for ours, theirs in MODULES.items():
        _add(found, theirs, head.get_submodule(ours))
    return {name: tensor.detach().cpu().float().clone() for name, tensor in found.items()}, _config(model, texts, side)


def _config(model: nn.Module, texts: nn.Module, side: int) -> dict:
    image, text = model.encoder.tower, texts.tower
    act = "quick_gelu" if texts.plan.quick_gelu else "gelu"
    vision = dict(
        hidden_size=image.embed_dim, intermediate_size=image.blocks[0].mlp.fc1.out_features,
        num_hidden_layers=len(image.blocks), num_attention_heads=image.blocks[0].attn.num_heads,
        image_size=side * model.facts.strides[-1], patch_size=model.facts.strides[-1], hidden_act=act,
    )  # fmt: skip
    block = text.transformer.resblocks[0]
    words = dict(
        hidden_size=block.attn.embed_dim, intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(text.transformer.resblocks), num_attention_heads=block.attn.num_heads,
        max_position_embeddings=len(text.positional_embedding), vocab_size=len(text.token_embedding.weight),
        hidden_act=act,
    )  # fmt: skip
    return dict(
        model_type="owlvit", architectures=["OwlViTForObjectDetection"], projection_dim=model.facts.aligned_width,
        vision_config=vision, text_config=words,
    )  # fmt: skip


def _check(model: nn.Module, texts: nn.Module) -> None:
    """Raise UserError unless the towers are CLIP's, the only ones that transformers' class has."""
    facts, image = model.facts, model.encoder.tower
    of_clip = (
        facts.prefix == ("class",)
        and facts.pooled == "class"
        and facts.native_grid is not None
        and model.encoder.projection is not None
        and isinstance(getattr(image, "norm_pre", None), nn.LayerNorm)
        and image.patch_embed.proj.bias is None
        and texts.plan.rules.style == "clip"
        and isinstance(getattr(texts.tower, "text_projection", None), nn.Parameter)
        and texts.width == texts.plan.config.get("width")
        and len(model.heads) == 1
    )
    if not of_clip:
        raise UserError(
            f"transformers' OwlViT has CLIP's towers alone, with texts as wide as their tower. {facts.name} has "
            "others; keep its head file."
        )


def _add(found: dict[str, Tensor], name: str, module: nn.Module) -> None:
    found |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def _add_block(found, name: str, qkv: Tensor, bias: Tensor, out, norm1, norm2, fc1, fc2) -> None:
    for part, weight, offset in zip("qkv", qkv.chunk(3), bias.chunk(3), strict=True):
        found |= {f"{name}.self_attn.{part}_proj.weight": weight, f"{name}.self_attn.{part}_proj.bias": offset}
    modules = {"self_attn.out_proj": out, "layer_norm1": norm1, "layer_norm2": norm2, "mlp.fc1": fc1, "mlp.fc2": fc2}
    for theirs, module in modules.items():
        _add(found, f"{name}.{theirs}", module)
