"""Head files whose heads were never trained, for tests of what is done with them."""

import torch

from siglip2_dense import head_file
from siglip2_dense.contracts import EncoderFacts
from siglip2_dense.registry import MODELS, build

ENCODER = dict(type="FrozenEncoder", name="test_vit", weights="random")
SEGMENTATION = dict(
    head=dict(type="LinearHead", layers="last"), task=dict(type="Segmentation", classes=["sky", "road", "car"])
)
DEPTH = dict(
    head=dict(type="LinearHead", layers=[2, 5], upsample=2),
    task=dict(type="Depth", min_depth=0.1, max_depth=10.0, bins=16),
)
NORMALS = dict(head=dict(type="LinearHead", layers=[1]), task=dict(type="Normals"))
SLIDE = dict(mode="slide", crop=64, stride=48)


def write_head(path, heads, inference=None, transforms=(), encoder=ENCODER, seed=0, **model):
    """Save a head file as a run would, of heads drawn at random; returns the probe."""
    inference = inference or dict(mode="whole")
    probe = build(MODELS, dict(type="DenseProbe", encoder=encoder, heads=heads, inference=inference, **model))
    generator = torch.Generator().manual_seed(seed)
    for parameter in probe.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    described = {name: head_file.describe(probe.heads[name], probe.tasks[name], parts) for name, parts in heads.items()}
    protocol = {"inference": inference, "test_transforms": list(transforms), "precision": "fp32"}
    config = dict(
        model=dict(type="DenseProbe", inference=inference, **model),
        val_dataloader=dict(dataset=dict(transforms=list(transforms))),
    )
    content = head_file.HeadFile(
        probe.trained_state(), probe.facts, encoder, described, protocol, {}, 0, model=head_file.describe_model(config)
    )
    head_file.save(path, content)
    return probe.eval()


def content(name="siglip2-base-16-256", weights="hub", value=1.0, task="Segmentation", data="ade20k", **metrics):
    facts = EncoderFacts(
        name=name, fingerprint="f" * 64, widths=(8,), strides=(16,), prefix=(), pooled="map", pooled_width=8,
        final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3, native_grid=(16, 16), position_kernel="bicubic", parameters=1,
    )  # fmt: skip
    head = {
        "head": {"type": "LinearHead"}, "task": {"type": task}, "optim": {}, "seed": 0,
        "reads": {"taps": [[0, True]], "pooled": "none", "stride": 16}, "meaning": {"classes": ["sky", "sea"]},
        "scoring": {},
    }  # fmt: skip
    return head_file.HeadFile(
        tensors={"segmentation.conv.weight": torch.full((2, 8, 1, 1), value)},
        encoder=facts,
        encoder_config={"type": "FrozenEncoder", "name": name, "weights": weights},
        heads={"segmentation": head},
        protocol={"train_data": {"name": data, "split": "train"}, "optimisation": {"iterations": 12}},
        metrics={"mIoU": 41.234, "aAcc": float("nan"), **metrics},
        step=12,
    )
