"""That the benchmarks still run on the package as it is, on the least work, and compare what they say they compare."""

import pytest
import torch

from siglip2_dense.benchmark import evaluate, overfit, owlvit, plan, throughput
from siglip2_dense.data.boxes.coco import CocoDetection
from siglip2_dense.engine.devices import DEVICES


def test_both_sides_of_the_evaluation_predict_the_same():
    ours, theirs, seconds = evaluate.compare(3, rounds=1, warmup=0)
    assert (ours.prediction != theirs.prediction).double().mean() < 1e-4
    scores, baseline = ours.scores(), theirs.scores()
    assert {name: scores[name] for name in baseline} == pytest.approx(baseline, abs=1e-3)
    assert min(map(len, seconds.values())) == 1
    assert all(value > 0 for found in evaluate.parts(ours, 1).values() for value in found)


@pytest.mark.parametrize(
    ("config", "precision"), [(plan.ADE20K, "fp32"), (plan.ADE20K, "bf16"), ("probe_navi_depth", "fp32")]
)
def test_every_phase_of_a_plan_is_estimated_and_done(config, precision):
    phases = ("step", "step from features", "evaluation", "evaluation from features", "pass")
    case = plan.Case(config, "test_vit", (48, 64), 2, phases, precision)
    found = plan.compare(case, DEVICES["h100"], rounds=1)
    assert len(found) == len(phases)
    for item in found:
        assert item["value"] >= 1 and f", {case.encoder} {precision}" in item["name"]


def test_the_row_is_cheaper_from_a_store_and_in_half_precision(monkeypatch, tmp_path):
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path / "none"))
    straight, stored, half, stored_half = (item["value"] for item in plan.row("siglip2-base-16-512"))
    assert 0 < stored_half < stored < straight and stored_half < half < straight


def test_photos_are_of_the_protocols_size_and_load(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "PHOTOS", 4)
    assert 2e4 < throughput.write_photos(tmp_path, seed=0) < 1e5  # ADE20K's have 42 kB on average
    config = throughput.Config.fromfile(throughput.find_config(throughput.ADE20K))
    data = throughput.build(
        throughput.DATASETS, {**config.train_dataloader.dataset.to_dict(), "root": str(tmp_path)}, seed=0
    )
    assert len(data) == 4 and max(data[0].image.shape) <= 512 and data[0].labels.dtype == torch.int64
    assert next(iter(throughput._parts(data))) == "reading" and throughput._loaded(data, 1, batches=1) > 0


def test_both_layouts_are_timed_with_memory_given_back_and_kept():
    found = throughput.numbers_of_own_process("throughput", "layouts('test_convnext', (1, 32, 48), 1)")
    assert len(found) == 4 and min(found) > 0


def test_detection_takes_as_long_as_transformers_on_the_same_weights(monkeypatch):
    monkeypatch.setitem(owlvit.SHAPES, "least", owlvit.Shape("clip-base-16-224", 64, 2, 1))
    found = owlvit.against_transformers("least", rounds=1)  # which compares what both sides give
    assert found["value"] > 0 and found["target"] == 1.0


@pytest.mark.parametrize("what", ["an image", "a step, clipped together", "a step, clipped by image"])
def test_an_image_and_a_step_of_detection_are_measured(monkeypatch, what):
    monkeypatch.setitem(owlvit.SHAPES, "least", owlvit.Shape("siglip-base-16-384", 64, 3, 1))
    seconds, peak = owlvit.measure("least", what)
    assert 0 < seconds < 60 and peak >= 0


def test_the_first_photographs_are_a_set_by_themselves(real, tmp_path):
    source = real("coco_tiny")
    boxes = overfit.first_images(source, tmp_path, 4)
    data, whole = CocoDetection("train", tmp_path), CocoDetection("train", source)
    assert len(data) == 4 and boxes >= sum(len(data[i].boxes) for i in range(4)) > 0
    assert list(data.image_ids) == sorted(whole.image_ids)[:4] and data.classes == whole.classes
