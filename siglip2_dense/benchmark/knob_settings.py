"""What the benchmark of knobs changes: settings of heads, of trainings and of tests, each beside the base's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from siglip2_dense.contracts import Size

BASE = "base"
NORM = "raw maps, without the final norm"  # there is one only where the encoder has one


@dataclass(frozen=True)
class Encoder:
    title: str
    timm: str
    file: str  # of its weights
    stride: int  # at which maps of several layers are joined
    model_args: dict | None = None
    normed: bool = True  # has a final norm


VIT = Encoder(
    "ViT-S/14 of 6 blocks",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_dinov2_b6_imgfocus_fp16.safetensors",
    stride=14,
    model_args=dict(depth=6),
)
LITE0 = Encoder(
    "efficientnet-lite0",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite0_in1k_fp16.safetensors",
    stride=16,
    normed=False,
)


def segmentation_heads(encoder: Encoder) -> dict[str, dict]:
    """{what is changed: a head, its task and its optimizer}; the base first."""
    base = dict(
        head=dict(type="LinearHead", layers="last", norm=True),
        task=dict(type="Segmentation", loss="sampled", samples=1024),
        optim=dict(type="AdamW", lr=1e-3, weight_decay=1e-4),
    )
    changed = partial(_changed, base)
    found = {
        BASE: changed(),
        "the last four layers, not one": changed(head=dict(layers="last4", stride=encoder.stride)),
        NORM: changed(head=dict(norm=False)),
        "the global vector beside each map": changed(head=dict(pooled="concat")),
        "no batch norm": changed(head=dict(batch_norm=False)),
        "a tenth of the channels dropped": changed(head=dict(dropout=0.1)),
        "a third of the learning rate": changed(optim=dict(lr=1e-3 / 3)),
        "three times the learning rate": changed(optim=dict(lr=3e-3)),
        "weight decay 1e-2, not 1e-4": changed(optim=dict(weight_decay=1e-2)),
        "the loss divided by all pixels, ignored ones too": changed(task=dict(average="all")),
        "other first weights": changed(seed=1),
    }
    return {title: parts for title, parts in found.items() if encoder.normed or title != NORM}


def segmentation_runs(size: Size, larger: Size, steps: int, classes: Sequence[str]) -> dict[str, dict]:
    """{what is changed: settings of a config} of trainings by themselves."""
    augmented = [
        dict(type="RandomResize", short=size[0], ratio=(0.5, 2.0)),
        dict(type="RandomCrop", size=size),
        dict(type="RandomFlip", p=0.5),
    ]
    void = dict(dataset=dict(classes=[*classes, "void"], ignore=255))
    return {
        f"{larger[0]} x {larger[1]} pixels, not {size[0]} x {size[1]}": resized(larger),
        "crops of all scales, mirrored (2 views of each)": dict(
            train_dataloader=dict(dataset=dict(transforms=augmented)),
            feature_store=dict(views=2),
            model=dict(canvas=size),
        ),
        "void learnt and scored as a class": dict(train_dataloader=void, val_dataloader=void),
        "half the steps": steps_of(steps // 2),
        "another seed of the whole run": dict(seed=1),
    }


def segmentation_tests(size: Size) -> dict[str, dict]:
    """{what is changed: settings of a config} when the base is tested."""
    side = size[0]
    at_size = [dict(type="Resize", size=size), dict(type="CenterCrop", size=size)]  # the labels too
    return {
        "windows at test, not the whole image": dict(
            model=dict(inference=dict(mode="slide", crop=side, stride=2 * side // 3))
        ),
        "averaged with the mirrored image at test": dict(model=dict(inference=dict(mode="whole", flip=True))),
        "scored at the size of the input": dict(val_dataloader=dict(dataset=dict(transforms=at_size))),
    }


def depth_heads(encoder: Encoder) -> dict[str, dict]:
    """As ``segmentation_heads``, of depth."""
    base = dict(
        head=dict(type="LinearHead", layers="last", norm=True, batch_norm=False, upsample=4),
        task=dict(type="Depth", min_depth=0.1, max_depth=5.0, bins=64, sig=1.0),
        optim=dict(type="AdamW", lr=1e-3, weight_decay=0.01, clip_norm=35),
    )
    changed = partial(_changed, base)
    found = {
        BASE: changed(),
        "four layers, not one": changed(head=dict(layers="even4", stride=encoder.stride)),
        "a DPT head": {**base, "head": dict(type="DPTHead", layers="even4", norm=True, width=32)},
        NORM: changed(head=dict(norm=False)),
        "the global vector beside each map": changed(head=dict(pooled="concat")),
        "a batch norm": changed(head=dict(batch_norm=True)),
        "a map no finer than the features": changed(head=dict(upsample=1)),
        "bins and scores to 10 m, not 5 m": changed(task=dict(max_depth=10.0)),
        "bins that weigh 0.001 at least, not 0.1": changed(task=dict(epsilon=0.001)),
        "the gradient loss as well": changed(task=dict(gradient=0.5)),
        "a third of the learning rate": changed(optim=dict(lr=1e-3 / 3)),
        "three times the learning rate": changed(optim=dict(lr=3e-3)),
        "other first weights": changed(seed=1),
    }
    return {title: parts for title, parts in found.items() if encoder.normed or title != NORM}


def normals_heads() -> dict[str, dict]:
    """As ``segmentation_heads``, of normals."""
    base = dict(
        head=dict(type="DPTHead", layers="even4", norm=True, width=32),
        task=dict(type="Normals", uncertainty=True),
        optim=dict(type="AdamW", lr=1e-3, weight_decay=0.01, clip_norm=35),
    )
    return {
        BASE: base,
        "three channels, without an uncertainty": _changed(base, task=dict(uncertainty=False)),
        "other first weights": _changed(base, seed=1),
    }


def _changed(base: dict, **parts) -> dict:
    """A head with settings of its parts changed."""
    return {**base, **{name: base[name] | given if name in base else given for name, given in parts.items()}}


def resized(size: Size) -> dict:
    resize = dict(type="Resize", size=size)
    return dict(
        train_dataloader=dict(dataset=dict(transforms=[resize])),
        val_dataloader=dict(dataset=dict(transforms=[{**resize, "targets": False}])),
    )


def steps_of(count: int) -> dict:
    return dict(
        train_cfg=dict(max_iters=count, val_interval=count),
        param_scheduler=[dict(type="OneCycleLR", total_steps=count, by_epoch=False)],
    )


def merged(settings: dict, more: dict) -> dict:
    """Dicts are merged, anything else is replaced."""
    found = dict(settings)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found
