"""Exports that are refused, and what an export is compared by."""

import pytest
import torch
from heads_made import DEPTH, ENCODER, write_head
from torch import nn

from siglip2_dense import head_file
from siglip2_dense.contracts import Geometry, RawDetections
from siglip2_dense.encoders import weights
from siglip2_dense.encoders.weights import build_tower
from siglip2_dense.errors import UserError
from siglip2_dense.export import checked, parity, program
from siglip2_dense.export.checked import export
from siglip2_dense.export.opening import open_heads
from siglip2_dense.registry import MODELS, TASKS, build

TINY = dict(type="FrozenEncoder", name="test_vit", weights="random", model_args=dict(depth=1))
HEADS = dict(depth=dict(head=dict(type="LinearHead", batch_norm=False), task=dict(type="Depth", bins=8)))


def probe(encoder=TINY, heads=HEADS):
    model = build(MODELS, dict(type="DenseProbe", encoder=encoder, heads=heads)).eval()
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_a_program_that_says_something_else_is_refused_and_nothing_is_lost(tmp_path, monkeypatch):
    out = tmp_path / "model.pt2"
    model = probe()
    assert export(model, out, (32, 48)).differences["depth"] < 1e-5
    there = out.read_bytes()

    def then_changed(*arguments):
        program.write(*arguments)
        with torch.no_grad():
            model.heads["depth"].conv.weight.mul_(1.5)

    monkeypatch.setattr(checked, "write", then_changed)
    with pytest.raises(UserError, match=r"heads\.depth would differ from the model by .*, more than 0\.001"):
        export(model, out, (32, 48))
    assert out.read_bytes() == there and list(tmp_path.iterdir()) == [out]
    with pytest.raises(UserError, match="would differ"):
        export(model, tmp_path / "new" / "model.pt2", (32, 48))
    assert not any((tmp_path / "new").iterdir())


def test_heads_are_opened_as_for_predictions(tmp_path, monkeypatch):
    """Two of one name get numbers, and weights whose file was another machine's come from the hub."""
    models = [write_head(tmp_path / f"{seed}.safetensors", {"depth": DEPTH}, seed=seed) for seed in (0, 1)]
    for name in ("0", "1"):
        content = head_file.read(tmp_path / f"{name}.safetensors")
        content.encoder_config = {**ENCODER, "weights": "/elsewhere/vit.pth"}
        head_file.save(tmp_path / f"{name}.safetensors", content)
    monkeypatch.setattr(weights, "_from_hub", lambda entry, arguments: build_tower(entry, "random", arguments).tower)
    found = open_heads([str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)])
    assert list(found.heads) == ["depth", "depth_2"]
    for model, name in zip(models, found.heads, strict=True):
        expected = model.heads["depth"].state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.heads[name].state_dict().items())


def test_a_size_that_cannot_be_free_is_fixed_with_a_reason(tmp_path, monkeypatch):
    def refuses(model, size, free):
        if free:
            raise RuntimeError("no symbols here")
        return program.trace(model, size, free)

    monkeypatch.setattr(checked, "trace", refuses)
    found = export(probe(), tmp_path / "model.pt2")
    assert found.size == (160, 160) and "RuntimeError: no symbols here" in found.reason
    run = torch.export.load(tmp_path / "model.pt2").module()
    assert run(torch.zeros(5, 3, 160, 160, dtype=torch.uint8))["depth"].shape == (5, 1, 160, 160)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("siglip2-base-16-naflex", "fixed-resolution encoder"), ("model.pth", r"ends in \.onnx, or in \.pt2")],
)
def test_what_cannot_be_exported(name, sentence, tmp_path):
    if name.endswith(".pth"):
        model, out = None, tmp_path / name
    else:
        encoder = dict(type="FrozenEncoder", name=name, weights="random", model_args=dict(depth=1))
        model, out = probe(encoder), tmp_path / "model.pt2"
    with pytest.raises(UserError, match=sentence):
        export(model, out)
    assert not any(tmp_path.iterdir())


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(program, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"needs onnxscript; run pip install 'siglip2_dense\[export\]'"):
        program.check_name("model.onnx")
    program.check_name("model.pt2")


def place(height, width):
    return Geometry((height, width), (0, 0, height, width), (height, width), (height, width), (height, width))


def test_labels_are_as_far_as_the_model_scores_them_lower():
    task = build(TASKS, dict(type="Segmentation", classes=["a", "b", "c"]))
    raw = torch.tensor([[[1.0, 0.5]], [[0.9, 2.0]], [[0.2, 1.9995]]])  # (3, 1, 2)
    windows = [(raw, place(1, 2))]
    for labels, distance in (([[0, 1]], 0), ([[0, 2]], 5e-4), ([[1, 1]], 0.1), ([[2, 0]], 1.5)):
        assert parity._of_labels(task, windows, torch.tensor(labels)).item() == pytest.approx(distance, abs=1e-6)
    assert parity._of_labels(task, windows, torch.zeros(2, 1, dtype=torch.int64)).isinf()


def test_maps_of_another_shape_or_without_numbers_are_not_near():
    ones = torch.ones(1, 2, 3)
    assert parity._of_maps(ones, ones + 1e-4).item() == pytest.approx(1e-4, rel=1e-2)
    for other in (torch.ones(1, 3, 2), ones * torch.nan):
        assert not parity._of_maps(ones, other) <= parity.LIMIT


def test_detections_are_compared_with_any_that_the_model_could_give():
    task = build(TASKS, dict(type="Detection", classes=["a", "b"]))
    torch.manual_seed(0)
    texts = torch.eye(4)[:2]
    raw = RawDetections(torch.rand(1, 3, 4), torch.randn(1, 3, 4), torch.zeros(1, 3), torch.ones(1, 3), (texts,))
    windows = [(raw, place(20, 40))]
    own = task.predict(windows)
    given = [own.boxes, own.scores, own.labels]

    def far(boxes=own.boxes, scores=own.scores, labels=own.labels):
        return parity._of_detections(task, windows, boxes, scores, labels).item()

    assert far() == 0 and len(own.scores) == 6
    assert far(*(values[:4] for values in given)) == 0
    assert far(boxes=own.boxes + torch.tensor([0.4, 0, 0, 0])) == pytest.approx(0.01, rel=1e-3)  # of 40 pixels
    assert far(scores=own.scores - 0.02) == pytest.approx(0.02, rel=1e-3)
    assert far(labels=1 - own.labels) > 1e-2
    swapped = torch.tensor([1, 0, 2, 3, 4, 5])
    gap = (own.scores[0] - own.scores[1]).item()
    assert far(*(values[swapped] for values in given)) == pytest.approx(gap, rel=1e-3)
