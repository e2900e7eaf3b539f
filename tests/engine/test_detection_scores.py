"""Detections through the whole evaluation: scored by their data's annotations and written as COCO's results."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from siglip2_dense import compare
from siglip2_dense.data.boxes.coco import CocoDetection
from siglip2_dense.data.generated import GeneratedBoxes
from siglip2_dense.data.loading import test_loader as loader_for_tests
from siglip2_dense.engine.evaluate import evaluate, keep_rows, report
from siglip2_dense.errors import UserError


class Oracle:
    """A model that finds what is there, ``shift`` of a box's width to the right, surer of large boxes."""

    def __init__(self, data, shift=0.0, tasks=("detection",)):
        self.classes, self.shift = data.classes, shift
        self.tasks = {name: SimpleNamespace(target="boxes", classes=data.classes) for name in tasks}

    def eval(self):
        return self

    def data_preprocessor(self, batch, training):
        return batch

    def __call__(self, inputs, data_samples, mode):
        return [dict.fromkeys(self.tasks, self.found(sample)) for sample in data_samples]

    def found(self, sample):
        widths = sample.boxes[:, 2] - sample.boxes[:, 0]
        boxes = sample.boxes + torch.stack([widths, widths * 0, widths, widths * 0], 1) * self.shift
        labels = torch.tensor([self.classes.index(name) for (name,) in sample.box_names], dtype=torch.int64)
        return SimpleNamespace(boxes=boxes, scores=1 - 1 / (1 + widths), labels=labels)


def scores_of(data, *arguments, **options):
    probe = Oracle(data, *arguments, **options)
    metrics = evaluate(probe, loader_for_tests(data, 4, 0, ("boxes",)))
    return report(metrics, probe.tasks), metrics, probe.tasks


def test_real_images_are_scored_and_what_was_found_is_written(real, tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = CocoDetection("val", real("coco_tiny"))
    found, metrics, tasks = scores_of(data)
    assert found["metrics"]["AP"] == pytest.approx(100) and found["images"] == 25 and found["intervals"] == {}
    assert sum(value is not None for value in found["per_class"]["AP"].values()) == 35
    found, metrics, tasks = scores_of(data, 0.2)
    assert 20 < found["metrics"]["AP"] < 60 and found["metrics"]["AP50"] > 99
    assert f"AP50 {found['metrics']['AP50']:.2f}" in found["table"]

    keep_rows(tmp_path / "results_val.json", metrics, tasks)
    assert [path.name for path in tmp_path.iterdir()] == ["detections_val.json"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data.annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "detections_val.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert np.allclose(list(found["metrics"].values()), 100 * evaluation.stats[:9], atol=1e-6)


def test_several_heads_write_a_file_each(tmp_path):
    data = GeneratedBoxes("val", 3, (96, 128))
    found, metrics, tasks = scores_of(data, tasks=("a", "b"))
    assert found["metrics"]["a.AP"] == found["metrics"]["b.AP"] == pytest.approx(100)
    keep_rows(tmp_path / "results.json", metrics, tasks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections_a.json", "detections_b.json"]
    results = json.loads((tmp_path / "detections_a.json").read_text())
    assert len(results) == sum(len(data[i].boxes) for i in range(3)) > 0


def test_records_of_detections_are_not_compared_by_images(tmp_path):
    parts = {key: {} for key in ("encoder", "protocol", "data", "run")}
    (tmp_path / "results.json").write_text(json.dumps({"metrics": {"a.AP": 3.0, "b.mIoU": 4.0}, **parts}))
    with pytest.raises(UserError, match="scores detections: precision is of ranks"):
        compare.read(tmp_path)


def test_a_set_that_nobody_scores_on_is_refused(tmp_path):
    data = GeneratedBoxes("val", 1, (96, 128))
    data.scoring["annotations"]["annotations"].clear()
    with pytest.raises(UserError, match=r"nothing in the data could be scored; look at their boxes"):
        scores_of(data)
