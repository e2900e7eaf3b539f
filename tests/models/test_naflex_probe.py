"""A probe on an encoder that gives each image a grid of its own."""

import json

import pytest
import torch

from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.contracts import Sample, Tap
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.errors import UserError
from siglip2_dense.models import DenseProbe

NAME = "siglip2-base-16-naflex"
TINY = dict(depth=4, embed_dim=48, num_heads=3)
SIZES = [(100, 70), (64, 64), (40, 123)]
HEADS = {
    "classes": dict(head=dict(type="LinearHead", pooled="concat"), task=dict(type="Segmentation", classes="generated")),
    "depth": dict(head=dict(type="DPTHead", layers=[0, 1, 2, 3], width=16), task=dict(type="Depth", bins=8)),
}


def encoder(**more):
    return FrozenEncoder(NAME, "random", sequence_length=24, model_args=TINY, **more)


def pictures(sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def test_maps_lie_on_a_canvas_that_says_which_cells_are_real():
    features = encoder().features(pictures(), pooled=True)
    (tap,) = features.maps
    assert tap == Tap(3, True) and features.pooled.shape == (3, 48)
    assert features.maps[tap].shape[-2:] == features.valid.shape[1:]
    for place, valid in zip(features.geometry, features.valid, strict=True):
        h, w = (side // 16 for side in place.box[2:])
        assert valid[:h, :w].all() and valid.sum() == h * w <= 24
        assert place.scaled and abs((h / w) / (place.resized[0] / place.resized[1]) - 1) < 0.3


def test_an_image_has_the_features_that_it_has_alone():
    one = encoder()
    together = one.features(pictures(), [Tap(0, False), Tap(1, True)], pooled=True)
    for number, image in enumerate(pictures()):
        alone = one.features([image], [Tap(0, False), Tap(1, True)], pooled=True)
        for tap, map in alone.maps.items():
            same = together.maps[tap][number : number + 1, :, : map.shape[2], : map.shape[3]]
            assert torch.allclose(same, map, atol=1e-5)
        assert torch.allclose(together.pooled[number], alone.pooled[0], atol=1e-5)


def test_facts_and_refusals():
    facts = encoder().facts
    assert (facts.native_grid, facts.position_kernel, facts.sequence_length) == ((16, 16), "bilinear, antialias", 24)
    assert facts.mean == (0.5, 0.5, 0.5) and facts.pooled == "map" and facts.multiple == 16
    assert FrozenEncoder(NAME, "random", model_args=TINY).facts.sequence_length == 256
    with pytest.raises(UserError, match=r"features\(\)"):
        encoder()(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UserError, match="sequence_length=0"):
        FrozenEncoder(NAME, "random", sequence_length=0, model_args=TINY)


def test_losses_flow_and_predictions_have_the_images_own_size():
    probe = DenseProbe(HEADS, encoder=encoder())
    samples = [
        Sample(labels=torch.randint(0, 6, size), depth=torch.rand(1, *size) + 1, original_size=size) for size in SIZES
    ]
    losses = probe(pictures(), samples, mode="loss")
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in probe.heads.parameters())
    probe.eval()
    predictions = probe(pictures(), samples, mode="predict")
    for number, (size, found) in enumerate(zip(SIZES, predictions, strict=True)):
        assert found["classes"].shape == size and found["depth"].shape == (1, *size)
        (alone,) = probe([pictures()[number]], [samples[number]], mode="predict")
        assert torch.equal(found["classes"], alone["classes"])
        assert torch.allclose(found["depth"], alone["depth"], atol=1e-5)


def test_windows_and_mirror():
    probe = DenseProbe(HEADS, encoder=encoder(), inference=dict(mode="slide", crop=48, stride=32, flip=True)).eval()
    (found,) = probe(pictures([(60, 90)]), None, mode="predict")
    assert found["classes"].shape == (60, 90) and found["depth"].isfinite().all()


def test_the_same_probe_trains_by_its_name_alone(tiny, tmp_path):
    config = tiny(f"model['encoder'].update(name={NAME!r}, sequence_length=20, model_args={TINY!r})\n"
                  "model['heads']['segmentation']['head']['layers'] = 'last'")  # fmt: skip
    train_verb.main([str(config), "--work-dir", str(tmp_path / "run")])
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["encoder"]["sequence_length"] == 20 and record["metrics"]["mIoU"] >= 0
    head, out = tmp_path / "run" / "head.safetensors", tmp_path / "again.json"
    test_verb.main([str(config), str(head), "--out", str(out), "--work-dir", str(tmp_path / "t")])
    assert json.loads(out.read_text())["metrics"] == record["metrics"]
