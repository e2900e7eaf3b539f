"""Segmentation, depth and normals in one pass: each head with its own layers, loss, optimizer and scores."""

import json

import pytest
import torch
from safetensors.torch import load_file

from siglip2_dense import head_file
from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.errors import UserError

THREE = """
model["heads"] = dict(
    segmentation=model["heads"]["segmentation"],
    depth=dict(
        head=dict(type="LinearHead", layers="last", pooled="concat", batch_norm=False, upsample=4),
        task=dict(type="Depth", min_depth=0.1, max_depth=10.0, bins=16, gradient=0.5, warm_up=3),
        optim=dict(type="AdamW", lr=1e-3, clip_norm=35),
    ),
    normals=dict(
        head=dict(type="LinearHead", layers=[2, 5], norm=False),
        task=dict(type="Normals"),
        optim=dict(type="SGD", lr=1e-2, momentum=0.9),
    ),
)
"""


def train(config, work_dir, *options):
    train_verb.main([str(config), "--work-dir", str(work_dir), *(["--cfg-options", *options] if options else [])])
    return json.loads((work_dir / "results.json").read_text())


def test_one_run_gives_the_scores_and_pictures_of_every_head(tiny, tmp_path):
    record = train(tiny(THREE), tmp_path / "run")
    metrics = record["metrics"]
    assert {"segmentation.mIoU", "depth.rmse", "depth.rmse_pooled", "normals.rmse", "normals.recall_11.25"} <= set(
        metrics
    )
    for name in ("segmentation.mIoU", "depth.rmse", "depth.d1", "normals.rmse", "normals.median"):
        low, high = record["intervals"][name]
        assert low <= metrics[name] <= high
    assert set(record["per_class"]) == {"segmentation"} and set(record["per_class"]["segmentation"]) == {"IoU", "Acc"}
    assert record["best"]["metrics"]["segmentation.mIoU"] == max(
        h["metrics"]["segmentation.mIoU"] for h in record["history"]
    )
    assert record["encoder"]["taps"] == [
        {"block": block, "norm": norm}
        for block, norm in [(1, True), (2, False), (2, True), (4, True), (5, False), (5, True)]
    ]
    assert record["protocol"]["heads"]["depth"]["scoring"]["range"] == [0.1, 10.0]
    assert record["protocol"]["peak_learning_rate"] == pytest.approx(
        {"segmentation": 1e-2, "depth": 1e-3, "normals": 1e-2}
    )
    names = [path.stem.split("_")[-1] for path in (tmp_path / "run" / "pictures").glob("*.png")]
    assert sorted(names) == ["depth"] * 2 + ["normals"] * 2 + ["segmentation"] * 2


def test_a_head_learns_the_same_beside_others_as_alone(tiny, tmp_path):
    train(tiny(), tmp_path / "alone")
    train(tiny(THREE), tmp_path / "three")
    alone, three = (load_file(tmp_path / name / "head.safetensors") for name in ("alone", "three"))
    assert set(alone) < set(three)
    for key, value in alone.items():
        assert torch.equal(three[key], value), key


def test_testing_gives_the_numbers_of_training_and_a_head_of_another_range_is_refused(tiny, tmp_path):
    record = train(tiny(THREE), tmp_path / "run", "train_cfg.max_iters=2")
    head = str(tmp_path / "run" / "head.safetensors")
    arguments = [str(tiny(THREE)), head, "--work-dir", str(tmp_path / "t"), "--out", str(tmp_path / "again.json")]
    test_verb.main(arguments)
    assert json.loads((tmp_path / "again.json").read_text())["metrics"] == record["metrics"]
    assert head_file.read(head).heads["depth"]["meaning"]["max_depth"] == 10.0
    for option, sentence in {
        "model.heads.depth.task.max_depth=80.0": r"depth.meaning.max_depth was 10.0 in the file and is 80.0 now",
        "model.heads.depth.task.epsilon=0.001": "depth.meaning.epsilon",
        "model.heads.depth.head.upsample=2": "depth.head.upsample",
    }.items():
        with pytest.raises(UserError, match=sentence):
            test_verb.main([*arguments, "--cfg-options", option])
    test_verb.main([*arguments, "--cfg-options", "model.heads.depth.task.gradient=0.0"])  # means the same


def test_resuming_three_heads_gives_the_uninterrupted_ones_bit_for_bit(tiny, tmp_path, monkeypatch):
    from siglip2_dense.engine import train as module

    train(tiny(THREE), tmp_path / "whole")
    evaluate = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a: (_ for _ in ()).throw(UserError("stopped")))
    with pytest.raises(UserError, match="stopped"):
        train(tiny(THREE), tmp_path / "run")  # at step 6, beyond the warm-up of 3
    monkeypatch.setattr(module, "evaluate", evaluate)
    train_verb.main([str(tiny(THREE)), "--work-dir", str(tmp_path / "run"), "--resume"])
    whole, resumed = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_data_without_what_a_head_learns_are_refused_before_anything_is_trained(tiny, tmp_path):
    folder = f"train_dataloader['dataset'] = dict(type='ImageFolder', root='{tmp_path}/set', split='train')"
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind / "train").mkdir(parents=True)
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "set" / "images" / "train" / "one.jpg")
    Image.new("L", (64, 48)).save(tmp_path / "set" / "labels" / "train" / "one.png")
    (tmp_path / "set" / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"heads.depth learns depth, but set gives labels"):
        train(tiny(THREE + folder), tmp_path / "run")


def test_depths_that_are_all_out_of_range_are_named_and_the_head_is_kept(tiny, tmp_path):
    with pytest.raises(UserError, match=r"heads.depth: nothing in the data could be scored"):
        train(tiny(THREE), tmp_path / "run", "model.heads.depth.task.max_depth=0.2")
    assert (tmp_path / "run" / "head.safetensors").is_file()


def test_losses_are_told_the_step_that_a_resumed_run_is_at(tiny, tmp_path, monkeypatch):
    from siglip2_dense.tasks import Depth

    told, loss = [], Depth.loss
    monkeypatch.setattr(Depth, "loss", lambda task, *given: told.append(given[-1]) or loss(task, *given))
    with monkeypatch.context() as patch:
        patch.setattr("siglip2_dense.engine.train.evaluate", lambda *a: (_ for _ in ()).throw(UserError("stopped")))
        with pytest.raises(UserError, match="stopped"):
            train(tiny(THREE), tmp_path / "run")
    train_verb.main([str(tiny(THREE)), "--work-dir", str(tmp_path / "run"), "--resume"])
    assert told == list(range(12))


def test_the_gradient_of_a_head_is_clipped_by_itself():
    from siglip2_dense.engine.optimizers import _optimizer

    linear = torch.nn.Linear(3, 1, bias=False)
    before = linear.weight.detach().clone()
    wrapper = _optimizer(dict(type="SGD", lr=1.0, clip_norm=0.5), linear)
    (100 * linear(torch.ones(1, 3))).sum().backward()
    wrapper.step()
    assert (linear.weight - before).norm().item() == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(UserError, match="clip_norm=-1"):
        _optimizer(dict(type="SGD", lr=1.0, clip_norm=-1), linear)
