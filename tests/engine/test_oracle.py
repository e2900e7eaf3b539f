"""The oracle in records: computed once, remembered, the same live and stored, and of each head's own grid."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import train

from siglip2_dense.cli import test as test_verb
from siglip2_dense.data.generated import GeneratedScenes
from siglip2_dense.engine.oracle import Oracle
from siglip2_dense.metrics.segmentation import SegmentationMetric
from siglip2_dense.models import DenseProbe
from siglip2_dense.registry import DATASETS, build
from siglip2_dense.tasks.depth import Depth
from siglip2_dense.tasks.segmentation import Segmentation

pytestmark = pytest.mark.usefixtures("one_thread")
THREE = """
model["heads"]["depth"] = dict(
    head=dict(type="DPTHead", layers="even4", width=8),
    task=dict(type="Depth", min_depth=0.1, bins=8),
    optim=dict(type="AdamW", lr=1e-3))
model["heads"]["normals"] = dict(
    head=dict(type="LinearHead"), task=dict(type="Normals"), optim=dict(type="AdamW", lr=1e-3))
"""


def test_a_record_has_it_by_the_names_of_the_metrics(tiny, tmp_path, monkeypatch):
    record = train(tiny(THREE), tmp_path / "run", "train_cfg.max_iters=1", "pictures=0")
    ideal, found = record["oracle"], record["metrics"]
    assert set(ideal) == set(found)
    assert ideal["segmentation.mIoU"] > 40 > found["segmentation.mIoU"]
    assert ideal["depth.rmse"] < found["depth.rmse"] and ideal["normals.rmse"] < found["normals.rmse"]

    def never(*arguments):
        raise AssertionError("it was remembered")

    for task in (Segmentation, Depth):
        monkeypatch.setattr(task, "ideal", never)
    head = str(tmp_path / "run" / "head.safetensors")
    test_verb.main([str(tiny(THREE)), head, "--work-dir", str(tmp_path / "t")])
    assert json.loads((tmp_path / "t" / "results_val.json").read_text())["oracle"] == record["oracle"]


def test_live_and_stored_are_one(tiny, tmp_path, monkeypatch):
    live = train(tiny(), tmp_path / "live", "train_cfg.max_iters=1", "pictures=0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    config = tiny(f"feature_store = dict(dir={str(tmp_path / 'features')!r})\nmodel['canvas'] = (40, 48)\n")
    stored = train(config, tmp_path / "stored", "train_cfg.max_iters=1", "pictures=0")
    assert stored["oracle"] == pytest.approx(live["oracle"])
    assert len(list((tmp_path / "other").rglob("oracle/*.json"))) == 1


def _probe(name="test_vit", layers="even4"):
    torch.manual_seed(0)
    parts = dict(head=dict(type="LinearHead", layers=layers), task=dict(type="Segmentation", classes="generated"))
    twin = dict(head=dict(type="LinearHead", layers="last"), task=dict(type="Segmentation", classes="generated"))
    encoder = dict(type="FrozenEncoder", name=name, weights="random")
    return DenseProbe(dict(a=parts, b=twin), encoder).eval()


def _count(probe, data, settings):
    oracle = Oracle(probe, data, settings)
    samples = [data[index] for index in range(len(data))]
    probe.predict([sample.image for sample in samples], samples)
    oracle.count(probe.places, samples)
    return oracle


@pytest.mark.parametrize(("name", "stride"), [("test_vit", 16), ("test_convnext", 4)])
def test_the_grid_is_that_of_the_finest_map_of_each_head(name, stride):
    settings = dict(type="GeneratedScenes", split="val", length=2, size=(64, 96))
    data = build(DATASETS, settings)
    probe = _probe(name)
    oracle = _count(probe, data, settings)
    grids = {head: [grid for grid, _ in windows] for head, windows in probe.places[0].items()}
    assert grids["a"] == [(64 // stride, 96 // stride)]
    if stride == 16:  # one grid: counted once
        assert grids["a"] == grids["b"] and len(oracle.metrics) == 1
    found = oracle.finish()
    metric = SegmentationMetric(6)
    for index in range(2):  # by torch's own pooling, of cells that hold whole pixels
        labels = data[index].labels
        shares = torch.nn.functional.one_hot(labels, 6).permute(2, 0, 1)[None].float()
        shares = torch.nn.functional.avg_pool2d(shares, stride)
        large = torch.nn.functional.interpolate(shares, size=(64, 96), mode="bilinear", align_corners=False)
        metric.update(large[0].argmax(0), labels, index)
    assert found["a"]["mIoU"] == pytest.approx(metric.compute()["mIoU"], rel=2e-3)  # ties may fall otherwise
    assert (found["b"]["mIoU"] < found["a"]["mIoU"]) == (name == "test_convnext")
    assert not Oracle(probe, data, settings).metrics
    assert Oracle(probe, GeneratedScenes("val", 3, (64, 96)), {**settings, "length": 3}).metrics


def test_a_label_file_that_was_corrected_is_scored_again(tmp_path):
    for kind, values in (("images", np.zeros((32, 32, 3), np.uint8)), ("labels", np.zeros((32, 32), np.uint8))):
        (tmp_path / kind / "val").mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / kind / "val" / "a.png")
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(6))))
    settings = dict(type="ImageFolder", root=str(tmp_path), split="val")
    probe = _probe()
    assert _count(probe, build(DATASETS, settings), settings).finish()["a"]["aAcc"] == 100
    assert not Oracle(probe, build(DATASETS, settings), settings).metrics
    labels = np.indices((32, 32)).sum(0).astype(np.uint8) % 2
    Image.fromarray(labels).save(tmp_path / "labels" / "val" / "a.png")
    assert _count(probe, build(DATASETS, settings), settings).finish()["a"]["aAcc"] == 50
