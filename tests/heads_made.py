"""Head files whose heads were never trained, for tests of what is done with them."""

import torch

from siglip2_dense import head_file
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
