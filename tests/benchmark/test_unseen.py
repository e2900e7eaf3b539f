"""The demo of CAT-Seg, for a few steps, and what its benchmark reads of it."""

import json

import pytest
import torch

from siglip2_dense.benchmark import coco, unseen
from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb

LENGTHS = [
    f"{where}.dataset.length=2"
    for where in ("train_dataloader", "val_dataloader", "benchmarks.unseen", "benchmarks.exchanged")
]
SHORT = ["train_cfg.max_iters=3", "train_cfg.val_interval=3", "train_dataloader.batch_size=1", "log_interval=1"]
SHORT += [f"{where}_dataloader.num_workers=0" for where in ("train", "val")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work dir of three steps."""
    folder, threads = tmp_path_factory.mktemp("demo"), torch.get_num_threads()
    torch.set_num_threads(1)  # forked workers inherit it
    backend = ["vis_backends=json", "pictures=1"]
    train_verb.main([unseen.CONFIG, "--work-dir", str(folder), "--cfg-options", *LENGTHS, *SHORT, *backend])
    torch.set_num_threads(threads)
    return folder


def test_the_demo_trains_and_is_asked_for_names_that_it_has_not_seen(run):
    record = json.loads((run / "results.json").read_text())
    assert len(record["per_class"]["IoU"]) == 23 and "red sphere" not in record["per_class"]["IoU"]
    wanted = ["--benchmarks", "unseen,exchanged", "--work-dir", str(run), "--cfg-options", *LENGTHS]
    test_verb.main([unseen.CONFIG, str(run / "head.safetensors"), *wanted])
    found = {name: json.loads((run / f"results_{name}.json").read_text()) for name in ("unseen", "exchanged")}
    assert all("red sphere" in one["per_class"]["IoU"] for one in found.values())
    queries = found["exchanged"]["protocol"]["heads"]["segmentation"]["scoring"]["queries"]
    assert queries["red sphere"] == ["blue box"]


def test_the_curve_of_the_loss_is_read_from_the_log(run):
    losses = coco.losses_of(run)
    assert [step for step, _ in losses] == [1, 2, 3] and all(0 < loss < 2 for _, loss in losses)


def test_names_in_the_order_of_the_labels(test_data):
    found = coco.class_names(test_data / coco.NAME)
    listed = (test_data / coco.NAME / "classes_133.txt").read_text().splitlines()
    assert found == [line.split("\t")[3] for line in listed]
