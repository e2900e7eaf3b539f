"""show: the worst images of a head by its own metric, beside the truth, for every task."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from runs import train

from siglip2_dense.cli.common import run
from siglip2_dense.cli.show import main
from siglip2_dense.engine.show import Extremes
from siglip2_dense.metrics import rows
from siglip2_dense.viz.panels import segmentation_panel

pytestmark = pytest.mark.usefixtures("one_thread")
THREE = """
model["heads"]["depth"] = dict(
    head=dict(type="LinearHead"), task=dict(type="Depth", min_depth=0.1, bins=8), optim=dict(type="AdamW", lr=1e-3))
model["heads"]["normals"] = dict(
    head=dict(type="LinearHead"), task=dict(type="Normals"), optim=dict(type="AdamW", lr=1e-3))
"""


def shown(capsys, *arguments):
    assert run(main, [*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_worst_images_of_each_head_are_those_of_its_rows(tiny, tmp_path, capsys):
    work_dir = tmp_path / "run"
    record = train(tiny(THREE), work_dir, "train_cfg.max_iters=6", "pictures=0")
    capsys.readouterr()
    kept = rows.read(rows.place(work_dir / "results.json"))
    for head, metric, worst in (("segmentation", "mIoU", min), ("depth", "rmse", max), ("normals", "rmse", max)):
        own = kept[head].metric.scores(kept[head].metric.stacked())[metric]  # of each image by itself
        found = shown(capsys, work_dir, "--head", head, "--count", 3)
        assert found["metric"] == metric and found["data"] == {"name": "generated", "split": "val", "images": 7}
        assert found["scores"][metric] == pytest.approx(record["metrics"][f"{head}.{metric}"])
        order = np.argsort(own, kind="stable") if worst is min else np.argsort(-own, kind="stable")
        assert [one["index"] for one in found["images"]] == order[:3].tolist()
        assert [one["scores"][metric] for one in found["images"]] == pytest.approx(own[order[:3]].tolist())
        best = shown(capsys, work_dir, "--head", head, "--count", 7, "--best")
        assert [one["index"] for one in best["images"]] == order[::-1].tolist()
    assert (work_dir / "worst.png").is_file() and (work_dir / "best.png").is_file()


def test_the_list_for_people_and_what_is_wrong(tiny, tmp_path, capsys):
    work_dir = tmp_path / "run"
    train(tiny(), work_dir, "train_cfg.max_iters=1", "pictures=0")
    capsys.readouterr()
    out = tmp_path / "few.png"
    assert run(main, [str(work_dir / "head.safetensors"), "--count", "2", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("segmentation: mIoU ") and lines[0].endswith("7 images of generated")
    assert lines[1] == f"{out}, row by row:" and lines[2].startswith("  1. mIoU ") and "scene-100000" in lines[2]
    assert np.asarray(Image.open(out)).ndim == 3
    for arguments, sentence in (
        ([str(tmp_path / "none")], "none is not there; give a head file"),
        ([str(work_dir), "--count", "0"], "--count 0: give 1 or more."),
        ([str(work_dir), "--head", "segmentatoin"], "did you mean 'segmentation'?"),
        ([str(work_dir), "--head", "x"], "no head is called 'x': there is segmentation"),
    ):
        assert run(main, arguments) == 1 and sentence in capsys.readouterr().err
    (work_dir / "another.py").write_text("seed = 0")
    assert run(main, [str(work_dir)]) == 1
    assert "has not one config beside the head (another.py, tiny.py); give --config." in capsys.readouterr().err
    assert run(main, [str(work_dir), "--config", str(tiny())]) == 0


BOXES = """
_base_ = [{base!r}]
model = dict(
    encoder=dict(model_args=dict(img_size=64, depth=1, embed_dim=32, num_heads=2, num_classes=16)),
    text=dict(model_args=dict(embed_dim=16, width=32, heads=2, layers=1, context_length=16)),
    inference=dict(size=64))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(length=2, size=(48, 64)))
val_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(length=4, size=(48, 64)))
train_cfg = dict(max_iters=1, val_interval=1)
log_interval = 1
pictures = 0
vis_backends = []
"""


def test_boxes_by_the_precision_of_each_image(tmp_path, capsys):
    from siglip2_dense.engine.configs import find_config

    path = tmp_path / "boxes.py"
    path.write_text(BOXES.format(base=str(find_config("owlvit_demo"))))
    train(path, tmp_path / "run")
    capsys.readouterr()
    found = shown(capsys, tmp_path / "run", "--count", 2)
    assert found["metric"] == "AP" and len(found["images"]) == 2 and 0 <= found["images"][0]["scores"]["AP"] <= 100


class Boxes:
    """Two images with a box each, of which the first is found."""

    scoring = dict(
        annotations={
            "images": [{"id": 7}, {"id": 9}, {"id": 11}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 40]},
                {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 40, 40]},
            ],
        },
        rule="coco", category_ids=(1,), image_ids=(7, 9, 11),
    )  # fmt: skip


def test_each_image_is_scored_as_if_it_were_the_whole_set():
    from siglip2_dense.contracts import Detections, Sample
    from siglip2_dense.tasks import Detection, Segmentation

    extremes = Extremes("d", Detection(["cat"]), Boxes(), count=3, best=False)
    for index, corner in enumerate((40.0, 4.0, 40.0)):
        found = Detections(torch.tensor([[0, 0, corner, corner]]), torch.tensor([0.9]), torch.tensor([0]))
        sample = Sample(path=f"{index}.jpg", original_size=(48, 48), index=index)
        extremes(lambda: torch.zeros(3, 48, 48, dtype=torch.uint8), sample, {"d": found})
    kept = extremes.in_order()
    assert [(one.path, one.scores["AP"]) for one in kept] == [("1.jpg", 0), ("0.jpg", pytest.approx(100))]
    task = Segmentation(["a", "b"])
    extremes = Extremes("s", task, None, count=1, best=True)
    prediction = torch.zeros(8, 8, dtype=torch.int64)
    for index, wrong in enumerate((5, 2, 3)):
        labels = prediction.clone()
        labels[:wrong] = 1
        sample = Sample(labels=labels, path=f"{index}.jpg", original_size=(8, 8), index=index)
        extremes(lambda: torch.zeros(3, 8, 8, dtype=torch.uint8), sample, {"s": prediction})
    (best,) = extremes.in_order()
    assert best.path == "1.jpg" and best.scores["mIoU"] == pytest.approx(100 * (6 / 8 + 0) / 2)
    labels = torch.zeros(8, 8, dtype=torch.int64)
    labels[:2] = 1
    expected = segmentation_panel(
        np.zeros((8, 8, 3), np.uint8), labels.numpy(), prediction.numpy(), ["a", "b"], task.palette
    )
    assert (best.panel == expected).all() and not math.isnan(best.rank[0])
