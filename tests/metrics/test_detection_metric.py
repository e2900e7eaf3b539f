"""AP against the two reference implementations, on awkward detections."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from boxes_made import coco_content, lvis_content, write_json

from siglip2_dense.errors import UserError
from siglip2_dense.metrics import detection
from siglip2_dense.metrics.detection import DetectionAP

NAMES = {"coco": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")}


def made(images, count, seed, content):
    """Random detections of each image that is a truth moved a little, or anything else: boxes, scores, labels, with
    equal scores among them.
    """
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in sorted(content["categories"], key=lambda category: category["id"])]
    found = []
    for image in images:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"] and a["bbox"]]
        boxes, labels = [], []
        for _ in range(int(count * rng.uniform(0.5, 1.5)) if image["id"] % 7 else 0):  # some images have none
            if own and rng.random() < 0.6:
                truth = own[rng.integers(len(own))]
                x, y, w, h = np.array(truth["bbox"]) + rng.normal(size=4) * np.tile(truth["bbox"][2:], 2) * 0.12
                label = ids.index(truth["category_id"]) if rng.random() < 0.8 else rng.integers(len(ids))
            else:
                x, y, w, h = rng.uniform(0, [image["width"], image["height"], 100, 100])
                nearby = image.get("neg_category_ids") or ids
                label = ids.index(nearby[rng.integers(len(nearby))])
            boxes.append([x, y, x + max(w, 1), y + max(h, 1)])
            labels.append(int(label))
        scores = rng.random(len(boxes)).round(2)
        found.append((torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(scores).float(), torch.tensor(labels)))
    return found


def metric_of(content, rule, found, order=None, annotations=None):
    ids = [category["id"] for category in sorted(content["categories"], key=lambda category: category["id"])]
    images = [image["id"] for image in content["images"]]
    metric = DetectionAP(annotations or content, rule, ids, images)
    for index in order if order is not None else range(len(images)):
        metric.update(index, *found[index])
    return metric


def coco_like(seed=0, images=21, categories=6):
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 9) if image % 5 else 0):  # some images have nothing
            size = rng.choice([12, 60, 150]) * rng.uniform(0.6, 1.4, 2)
            box = [*rng.uniform(0, 200, 2).round(2).tolist(), *size.round(2).tolist()]
            crowd = int(rng.random() < 0.1)
            further = {"iscrowd": crowd, "area": float(box[2] * box[3] * rng.uniform(0.4, 1))}
            rows.append((image, int(rng.integers(1, categories)) * 7, box, further))  # nothing of the last category
    names = {7 * number: f"thing {number}" for number in range(categories, 0, -1)}
    content = coco_content(rows, images, (300, 400), names)
    content["images"].reverse()  # the order of the file is not that of the ids
    return content


def of_pycocotools(content, path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(str(path)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[: len(NAMES["coco"])], evaluation.eval["precision"][..., 0, -1]


@pytest.mark.parametrize("seed", range(4))
def test_cocos_rule_equals_pycocotools(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "AT_ONCE", (16, 2)[seed % 2])  # all categories at once, or two
    content = coco_like(seed)
    found = made(content["images"], (3, 30, 120, 30)[seed], seed, content)
    metric = metric_of(content, "coco", found)
    metric.write(tmp_path / "found.json")
    expected, precision = of_pycocotools(content, tmp_path / "found.json")
    scores = metric.compute()
    assert list(scores) == list(NAMES["coco"])
    assert np.allclose(list(scores.values()), expected, atol=1e-6, equal_nan=True) and scores["AP"] > 1
    of_classes = metric.per_class()
    for label in range(6):
        own = precision[:, :, label]
        mean = 100 * own[own > -1].mean() if (own > -1).any() else None
        assert of_classes["AP"][label] == (None if mean is None else pytest.approx(mean, abs=1e-6))
    assert of_classes["AP"][5] is None and len(of_classes["AP50"]) == 6


def of_lvis(content, path, tmp_path, monkeypatch):
    from lvis import LVISEval

    monkeypatch.setattr(np, "float", float, raising=False)  # which the package asks for and NumPy no longer has
    truth = write_json(tmp_path / "truth.json", content)
    evaluation = LVISEval(str(truth), str(path), "bbox")
    evaluation.run()
    return {
        name.replace("@", ""): (100 * value if value > -1 else np.nan)
        for name, value in evaluation.get_results().items()
    }


def compared_with_lvis(content, found, tmp_path, monkeypatch):
    """Our scores, once they equal those of the LVIS API on the same detections, all of them, in a results file."""
    whole = tmp_path / "found.json"
    ids = [category["id"] for category in sorted(content["categories"], key=lambda category: category["id"])]
    results = [
        {"image_id": image["id"], "category_id": ids[label], "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for image, (boxes, scores, labels) in zip(content["images"], found, strict=True)
        for (x0, y0, x1, y1), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    ]
    whole.write_text(json.dumps(results))
    expected = of_lvis(content, whole, tmp_path, monkeypatch)
    scores = metric_of(content, "lvis", found).compute()
    assert list(scores) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR300", "APr", "APc", "APf"]
    for name, value in scores.items():
        assert value == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
    return scores


@pytest.mark.parametrize("count", [10, 400])
def test_lvis_rule_equals_the_lvis_api_on_a_miniature(count, tmp_path, monkeypatch):
    """400 detections an image are more than count: the best 300 over all categories."""
    base = coco_like(3, images=12)
    rng = np.random.default_rng(0)
    ids = [category["id"] for category in base["categories"]]
    negative, incomplete = {}, {}
    for image in base["images"]:
        own = {a["category_id"] for a in base["annotations"] if a["image_id"] == image["id"]}
        negative[image["id"]] = [number for number in ids if number not in own and rng.random() < 0.4]
        incomplete[image["id"]] = [number for number in own if rng.random() < 0.3]
    rows = [(a["image_id"], a["category_id"], a["bbox"], {"area": a["area"]}) for a in base["annotations"]]
    names = {category["id"]: category["name"] for category in base["categories"]}
    content = lvis_content(rows, negative, incomplete, 12, (300, 400), frequencies="rcfcfr", categories=names)
    scores = compared_with_lvis(content, made(content["images"], count, 1, content), tmp_path, monkeypatch)
    assert 0 < scores["AP"] < 90 and scores["APc"] != scores["APf"]


def test_lvis_rule_equals_the_lvis_api_on_real_annotations(real, tmp_path, monkeypatch):
    content = json.loads(real("lvis/lvis_val_100.json").read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation")
    content["images"] = content["images"][:40]  # the API takes a second for ten images of 1,230 categories
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    used = {a["category_id"] for a in content["annotations"]}
    used |= {number for image in content["images"] for number in image["neg_category_ids"]}
    content["categories"] = [category for category in content["categories"] if category["id"] in used]
    scores = compared_with_lvis(content, made(content["images"], 40, 0, content), tmp_path, monkeypatch)
    assert min(scores[f"AP{group}"] for group in "rcf") >= 0 and scores["AP"] > 10


def test_images_and_categories_that_are_not_asked_for_do_not_count():
    content = coco_like(1)
    found = made(content["images"], 20, 1, content)
    images = content["images"][::3]
    metric = DetectionAP(content, "coco", (21, 7, 14), [image["id"] for image in images])
    kept = {image["id"] for image in images}
    less = {
        "images": images,
        "annotations": [a for a in content["annotations"] if a["image_id"] in kept and a["category_id"] in (7, 14, 21)],
        "categories": [category for category in content["categories"] if category["id"] in (7, 14, 21)],
    }
    alone = DetectionAP(less, "coco", (7, 14, 21), [image["id"] for image in images])
    for index, (boxes, scores, labels) in enumerate(found[::3]):
        some = labels < 3
        metric.update(index, boxes[some], scores[some], (labels[some] + 1) % 3)  # the classes are in another order
        alone.update(index, boxes[some], scores[some], labels[some])
    assert metric.compute() == alone.compute() and metric.compute()["AP"] > 0
    first, second, third = alone.per_class()["AP"]
    assert metric.per_class()["AP"] == [third, first, second] and len({first, second, third}) == 3


def test_nothing_found_and_nothing_there(monkeypatch):
    monkeypatch.setattr(detection, "AT_ONCE", 1)
    content = coco_like(1)
    none = [(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))] * 21
    scores = metric_of(content, "coco", none).compute()
    assert scores["AP"] == scores["AR100"] == 0
    content["annotations"] = []
    metric = metric_of(content, "coco", made(content["images"], 3, 0, content))
    assert all(np.isnan(value) for value in metric.compute().values()) and set(metric.per_class()["AP"]) == {None}
    assert metric.intervals() == {} and metric.images == 21
    assert all(np.isnan(value) for value in metric_of(content, "coco", none).compute().values())


def test_annotations_without_boxes_or_numbers_of_their_own_do_no_harm():
    content = coco_like(2)
    found = made(content["images"], 20, 2, content)
    expected = metric_of(content, "coco", found).compute()
    content["annotations"][0]["id"] = 0  # to both libraries a match with it would be none
    content["annotations"].append({"id": 5, "image_id": 1, "category_id": 7, "bbox": []})
    assert metric_of(content, "coco", found).compute() == expected


def test_scores_follow_what_is_added_later():
    content = coco_like(0)
    found = made(content["images"], 20, 0, content)
    metric = metric_of(content, "coco", found, order=range(10))
    before = metric.compute()
    for index in range(10, 21):
        metric.update(index, *found[index])
    assert metric.compute() == metric_of(content, "coco", found, order=reversed(range(21))).compute() != before


def test_results_files(tmp_path):
    content = coco_like(0)
    metric = metric_of(content, "coco", [(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())] * 21)
    metric.write(tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []
    metric = DetectionAP(content, "coco", (7, 14), [21, 5])
    metric.update(1, torch.tensor([[0.1, 0.2, 10.1, 20.7]]), torch.tensor([1 / 3]), torch.tensor([1]))
    metric.update(0, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([0.25, 0.5]), torch.tensor([0, 1]))
    metric.write(tmp_path / "found.json")
    first, second, third = json.loads((tmp_path / "found.json").read_text())
    assert first == {"image_id": 21, "category_id": 14, "bbox": [5, 6, 2, 2], "score": 0.5}
    assert (second["image_id"], second["category_id"], second["score"]) == (21, 7, 0.25)
    assert third == {"image_id": 5, "category_id": 14, "bbox": [0.1, 0.2, 10, 20.5], "score": 0.33333334}


def test_what_cannot_be_counted_is_refused():
    content = coco_like(0)
    found = made(content["images"], 5, 0, content)
    metric = metric_of(content, "coco", found, order=[0])
    with pytest.raises(ValueError, match="counts once"):
        metric.update(0, *found[0])
    with pytest.raises(ValueError, match="21 images, got the position 21"):
        metric.update(21, *found[0])
    with pytest.raises(ValueError, match="labels are 0 to 5"):
        metric.update(1, torch.zeros(1, 4), torch.zeros(1), torch.tensor([6]))
    with pytest.raises(UserError, match="give 'coco' or 'lvis'"):
        DetectionAP(content, "voc", (7,), (1,))
    with pytest.raises(UserError, match="have no frequency"):
        metric_of(content, "lvis", found).compute()
    with pytest.raises(UserError, match="has no category 8"):
        DetectionAP(content, "coco", (8,), (1,)).compute()
    with pytest.raises(UserError, match="lists 1 of 2 images"):
        DetectionAP(content, "coco", (7,), (1, 99)).compute()


RANKS = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from siglip2_dense.metrics.detection import DetectionAP

dist.init_process_group("gloo")
rank, (content, found, out) = dist.get_rank(), sys.argv[1:]
ids = sorted(category["id"] for category in json.loads(Path(content).read_text())["categories"])
images = [image["id"] for image in json.loads(Path(content).read_text())["images"]]
metric = DetectionAP(content, "coco", ids, images)
for index, values in enumerate(torch.load(found)):
    if index % 2 == rank:
        metric.update(index, *values)
metric.sync()
Path(f"{out}.{rank}").write_text(json.dumps([metric.compute(), metric.per_class(), metric.images]))
"""


def test_two_ranks_count_what_one_counts(tmp_path):
    content = coco_like(2)
    found = made(content["images"], 30, 5, content)
    write_json(tmp_path / "truth.json", content)
    torch.save(found, tmp_path / "found.pt")
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["ranks.py", "truth.json", "found.pt", "scores"]
    package = str(Path(detection.__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metric = metric_of(content, "coco", found, annotations=tmp_path / "truth.json")
    expected = [metric.compute(), metric.per_class(), 21]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"scores.{rank}").read_text()) == expected
