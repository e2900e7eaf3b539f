"""Files that were exported, run as anybody would, against the model's own predictions."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from siglip2_dense import head_file
from siglip2_dense.cli import export as verb
from siglip2_dense.contracts import Sample
from siglip2_dense.engine.run import describe_heads
from siglip2_dense.registry import MODELS, build

onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = ["wall", "floor", "sky", "door", "bed"]
SIZES = [(1, (33, 70)), (2, (96, 64)), (3, (47, 112))]  # batch and size; odd, of whole patches, and odd in one side
VIT = dict(type="FrozenEncoder", name="siglip2-base-16-256", weights="random",
           model_args=dict(depth=4, embed_dim=48, num_heads=4))  # fmt: skip
CNN = dict(type="FrozenEncoder", name="test_convnext", weights="random")
SEGMENTATION = dict(type="Segmentation", classes=CLASSES)
SMALL = dict(depth=2, embed_dim=48, num_heads=4, num_classes=32)
TEXT = dict(model_args=dict(embed_dim=32, width=32, heads=4, layers=1), cache=False)
OF_NAMES = dict(
    encoder=dict(type="FrozenEncoder", name="clip-base-16-224", weights="random", model_args=SMALL), text=TEXT
)


def built(model):
    """A model whose maps are anything: what heads begin with hides mistakes."""
    torch.manual_seed(0)
    probe = build(MODELS, model).eval()
    for module in probe.modules():
        for values in module.parameters(recurse=False):
            if values.ndim > 1:
                nn.init.normal_(values, std=values[0].numel() ** -0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return probe


def saved(model, path, probe=None):
    """The head file of a model."""
    probe = probe or built(model)
    described = describe_heads(Config(dict(model=model)), probe)
    content = head_file.HeadFile(
        probe.trained_state(), probe.facts, model["encoder"], described, {}, {}, 0,
        text=head_file.describe_text(probe), model=head_file.describe_model(dict(model=model)),
    )  # fmt: skip
    head_file.save(path, content)
    return probe


def session_of(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return session, lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def noise(count, size, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, *size), dtype=np.uint8)


def predicted(probe, images):
    samples = [Sample(original_size=tuple(image.shape[-2:])) for image in images]
    return probe.predict([torch.from_numpy(image) for image in images], samples)


def agree(found, expected):
    """Label maps but for ties; other maps to 1e-3."""
    if expected.dtype == torch.int64:
        return found.dtype == np.int64 and (found == expected.numpy()).mean() > 0.999
    return found.dtype == np.float32 and np.abs(found - expected.numpy()).max() < 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


PIXELS = dict(
    type="DenseProbe",
    encoder={**VIT, "precision": "bf16"},  # which an export does not have
    heads=dict(
        depth=dict(
            head=dict(type="LinearHead", layers="last", norm=False, pooled="concat", batch_norm=False, upsample=4),
            task=dict(type="Depth", bins=16),
        ),
    ),
)
NORMALS = {
    **PIXELS,
    "heads": dict(normals=dict(head=dict(type="DPTHead", width=16), task=dict(type="Normals"))),
}


@pytest.fixture(scope="module")
def probes(folder):
    """Head files of the two models, and the models in float32."""
    for name, model in (("pixels", PIXELS), ("normals", NORMALS)):
        saved(model, folder / f"{name}.safetensors")
    return [built({**model, "encoder": VIT}) for model in (PIXELS, NORMALS)]


@pytest.fixture(scope="module")
def onnx_file(folder, probes):
    heads = [str(folder / f"{name}.safetensors") for name in ("pixels", "normals")]
    verb.main([*heads, "--out", str(folder / "deep" / "model.onnx")])
    return folder / "deep" / "model.onnx"


def test_heads_of_two_files_at_any_size(onnx_file, probes):
    session, run = session_of(onnx_file)
    assert [one.name for one in session.get_outputs()] == ["depth", "normals"]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 1, "height", "width"]
    for count, size in SIZES:
        images = noise(count, size)
        found = run(images)
        for number in range(count):
            for probe in probes:
                for name, expected in predicted(probe, images[number : number + 1])[0].items():
                    assert agree(found[name][number], expected), (name, size)
    assert found["depth"].std() > 1e-2
    assert list(onnx_file.parent.iterdir()) == [onnx_file]  # nothing else was left there


def test_an_onnx_file_says_what_it_is(onnx_file, probes):
    about = session_of(onnx_file)[0].get_modelmeta().custom_metadata_map
    heads, encoder = json.loads(about["heads"]), json.loads(about["encoder"])
    assert heads["depth"] == {"task": "Depth", "unit": "m", "min_depth": 1e-3, "max_depth": 10.0}
    assert encoder == {"name": VIT["name"], "fingerprint": probes[0].facts.fingerprint, "trained": "none"}
    assert json.loads(about["outputs"])["normals"]["shape"] == ["batch", 3, "height", "width"]
    assert "siglip2_dense/" not in onnx_file.read_bytes().decode("latin1")  # of nobody's folders


def test_a_program_of_torch_at_any_size_in_a_process_without_this_package(tmp_path):
    out, labels = tmp_path / "model.pt2", dict(head=dict(type="LinearHead", layers="even4"), task=SEGMENTATION)
    probe = saved({**PIXELS, "encoder": VIT, "heads": dict(segmentation=labels)}, tmp_path / "labels.safetensors")
    verb.main([str(tmp_path / "labels.safetensors"), "--out", str(out)])
    images = noise(3, (47, 96))
    np.save(tmp_path / "images.npy", images)
    code = f"""
import json, sys, numpy as np, torch
about = {{"siglip2_dense.json": ""}}
run = torch.export.load({str(out)!r}, extra_files=about).module()
images = torch.from_numpy(np.load({str(tmp_path / "images.npy")!r}))
parts = [run(images[:1]), run(images[1:])]
assert not [name for name in sys.modules if name.startswith(("siglip2_dense", "timm", "mmengine"))]
print(json.loads(about["siglip2_dense.json"])["heads"]["segmentation"]["classes"])
np.savez({str(tmp_path / "found.npz")!r}, **{{key: np.concatenate([part[key] for part in parts]) for key in parts[0]}})
"""
    assert str(CLASSES) in alone(code, tmp_path)
    found = np.load(tmp_path / "found.npz")
    for one, expected in zip(found["segmentation"], predicted(probe, images), strict=True):
        assert agree(one, expected["segmentation"]) and len(np.unique(one)) > 1


def test_an_onnx_file_in_a_process_without_torch(onnx_file, probes, tmp_path):
    images = noise(2, (50, 41))
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(onnx_file)!r})
(normals,) = session.run(["normals"], {{"images": np.load({str(tmp_path / "images.npy")!r})}})
assert "torch" not in sys.modules and "siglip2_dense" not in sys.modules
np.save({str(tmp_path / "normals.npy")!r}, normals)
"""
    alone(code, tmp_path)
    found = np.load(tmp_path / "normals.npy")
    assert all(agree(one, own["normals"]) for one, own in zip(found, predicted(probes[1], images), strict=True))


def alone(code, folder):
    """What a fresh process prints."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=own, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_maps_of_several_strides_and_a_head_of_mmsegmentation(folder):
    fcn = dict(type="mmseg.FCNHead", _scope_="mmseg", channels=16, num_convs=1, norm_cfg=dict(type="BN"))
    heads = dict(
        joined=dict(head=dict(type="LinearHead", layers="even4"), task=SEGMENTATION),
        convolved=dict(head=fcn, task=SEGMENTATION),
    )
    model = dict(type="DenseProbe", encoder=CNN, heads=heads)
    probe = saved(model, folder / "cnn.safetensors")
    verb.main([str(folder / "cnn.safetensors"), "--out", str(folder / "cnn.onnx")])
    _, run = session_of(folder / "cnn.onnx")
    for count, size in SIZES:
        images = noise(count, size)
        found = run(images)
        for number, expected in enumerate(predicted(probe, images)):
            assert all(agree(found[name][number], expected[name]) for name in heads)


def test_parts_of_an_encoder_that_were_trained_are_in_the_file(folder, capsys):
    encoder = {**VIT, "trainable": ["q", "v"], "checkpointing": True}
    model = {**PIXELS, "encoder": encoder, "encoder_optim": dict(lr_mult=0.1)}
    probe = built(model)
    saved(model, folder / "trained.safetensors", probe)
    out = folder / "trained.pt2"
    verb.main([str(folder / "trained.safetensors"), "--out", str(out), "--size", "47", "70"])
    assert "47x70 pixels" in capsys.readouterr().out
    images = noise(2, (47, 70))
    found = torch.export.load(out).module()(torch.from_numpy(images))
    frozen = built({**PIXELS, "encoder": VIT})
    frozen.heads.load_state_dict(probe.heads.state_dict())
    for number, (expected, other) in enumerate(zip(predicted(probe, images), predicted(frozen, images), strict=True)):
        assert agree(found["depth"][number].numpy(), expected["depth"])
        assert not agree(found["depth"][number].numpy(), other["depth"])


def config_file(folder, name, model):
    path = folder / f"{name}.py"
    path.write_text(f"seed = 0\nmodel = {model!r}\n")
    return str(path)


def test_names_alone(folder):
    model = dict(type="ZeroShot", **OF_NAMES, classes=["thing"], templates="name", inference=dict(mode="whole"))
    config = config_file(folder, "names", model)
    out = folder / "names.onnx"
    verb.main(["--config", config, "--prompts", "cat, sofa|couch, floor", "--out", str(out)])
    probe = build(MODELS, model).eval()
    probe.set_vocabulary(["cat", "sofa", "floor"], {"sofa": ["sofa", "couch"]})
    session, run = session_of(out)
    assert json.loads(session.get_modelmeta().custom_metadata_map["heads"])["segmentation"]["classes"] == [
        "cat", "sofa", "floor",
    ]  # fmt: skip
    for count, size in SIZES:
        images = noise(count, size)
        found = run(images)["segmentation"]
        for one, expected in zip(found, predicted(probe, images), strict=True):
            assert agree(one, expected["segmentation"])
    assert set(np.unique(found)) <= {0, 1, 2}


def test_catseg_with_its_windows(folder):
    head = dict(head=dict(type="CATSegHead", grid=3, blocks=1), task=dict(type="OpenVocabulary", templates="name"))
    inference = dict(mode="slide", crop=48, stride=32, size=(80, 80), overview=True, classes="reference")
    model = dict(type="CATSeg", **OF_NAMES, heads=dict(segmentation=head), inference=inference)
    asked = {**head, "task": {**head["task"], "classes": ["cat", "dog"]}}
    probe = saved({**model, "heads": dict(segmentation=asked)}, folder / "catseg.safetensors")
    config, out = config_file(folder, "catseg", model), folder / "catseg.onnx"
    verb.main([str(folder / "catseg.safetensors"), "--config", config, "--prompts", "cat, dog", "--out", str(out)])
    _, run = session_of(out)
    for count, size in SIZES[:2]:
        images = noise(count, size)
        for one, expected in zip(run(images)["segmentation"], predicted(probe, images), strict=True):
            assert agree(one, expected["segmentation"])


def test_boxes_of_owlvit(folder):
    head = dict(head=dict(type="OWLViTHead"), task=dict(type="Detection", templates="name"))
    model = dict(type="OWLViT", **OF_NAMES, heads=dict(detection=head), inference=dict(mode="square", size=72))
    asked = {**head, "task": {**head["task"], "classes": ["cat", "mug"], "queries": {"mug": ["mug", "cup"]}}}
    probe = saved({**model, "heads": dict(detection=asked)}, folder / "owl.safetensors")
    out = folder / "owl.onnx"
    verb.main([str(folder / "owl.safetensors"), "--prompts", "cat, mug|cup", "--out", str(out)])
    session, run = session_of(out)
    assert [one.name.removeprefix("detection_") for one in session.get_outputs()] == ["boxes", "scores", "labels"]
    for count, size in [*SIZES, (1, (72, 72)), (1, (1, 200))]:
        images = noise(count, size)
        found = run(images)
        for number, expected in enumerate(predicted(probe, images)):
            expected = expected["detection"]
            scores = found["detection_scores"][number]
            assert len(scores) == 25 * 2 and np.abs(scores - expected.scores.numpy()).max() < 1e-3
            clear = np.abs(np.diff(scores, prepend=2, append=-1)) > 1e-4  # of near ones the order is open
            clear = clear[1:] & clear[:-1]
            assert clear.sum() > 3
            assert (found["detection_labels"][number] == expected.labels.numpy())[clear].all()
            apart = np.abs(found["detection_boxes"][number] - expected.boxes.numpy())[clear]
            assert apart.max() < 1e-3 * max(size)
