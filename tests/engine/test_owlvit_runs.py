"""Runs of OWL-ViT from a config: towers train, are saved, resumed, tested and asked for other names."""

import json

import pytest
import torch
from runs import TWO_RANKS, train
from safetensors.torch import load_file

from siglip2_dense import Predictor, head_file
from siglip2_dense.cli import predict as predict_verb
from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.errors import UserError

OWLVIT = """
model = dict(
    type="OWLViT",
    encoder=dict(
        type="FrozenEncoder", name="clip-base-16-224", weights="random", trainable="all", drop_path=0.2,
        model_args=dict(depth=2, embed_dim=48, num_heads=4, num_classes=32)),
    text=dict(
        model_args=dict(embed_dim=32, width=32, heads=4, layers=2), cache=False, trainable="all", drop_path=0.1),
    encoder_optim=dict(),
    text_optim=dict(lr=1e-4),
    example_clip=1.0,
    heads=dict(detection=dict(head=dict(type="OWLViTHead"), task=dict(type="Detection", templates="name"),
                              optim=dict(type="Adam", lr=1e-3))),
    inference=dict(mode="square", size=64),
)
train_dataloader["dataset"] = dict(
    type="GeneratedBoxes", split="train", length=5, size=(48, 64), transforms=[dict(type="RandomFlip")])
val_dataloader["dataset"] = dict(type="GeneratedBoxes", split="val", length=3, size=(48, 64))
train_cfg = dict(max_iters=6, val_interval=6, save_interval=3)
pictures = 1
"""
FROZEN = """
for tower in ("encoder", "text"):
    del model[tower]["trainable"], model[tower]["drop_path"]
del model["encoder_optim"], model["text_optim"], tower
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_a_run_leaves_its_test_and_its_use(tiny, tmp_path):
    config, run = tiny(OWLVIT), tmp_path / "run"
    record = train(config, run)
    assert {"AP", "AP50"} <= set(record["metrics"]) and record["data"]["images"] == 3
    tensors, content = load_file(run / "head.safetensors"), head_file.read(run / "head.safetensors")
    assert {key.partition(".")[0] for key in tensors} == {"detection", "encoder", "text"}
    assert content.text["trainable"] == "all"
    mode = record["protocol"]["encoder_mode"]
    assert (mode["trains"], mode["text_trains"], mode["text_optim"]) == ("all", "all", {"lr": 1e-4})
    assert mode["drop_path"] == {"encoder": 0.2, "text": 0.1} and record["protocol"]["example_clip"] == 1.0
    rates = record["protocol"]["peak_learning_rate"]
    assert rates == pytest.approx(dict(detection=1e-3, encoder=1e-3, text=1e-4))
    scoring = record["protocol"]["heads"]["detection"]["scoring"]
    assert (scoring["detections"], scoring["ensemble"]) == (300, "mean of logits")
    assert len(list((run / "pictures").glob("*_detection.png"))) == 1
    head = str(run / "head.safetensors")
    test_verb.main([str(config), head, "--work-dir", str(tmp_path / "t"), "--out", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text())["metrics"] == record["metrics"]
    picture = next((run / "pictures").iterdir())
    options = ["--config", str(config), "--head", head, "--prompts", "green cone", "--out", str(tmp_path / "found")]
    predict_verb.main([str(picture), "--task", "detect", *options, "--threshold", "0"])
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "green cone"}] and len(found["annotations"]) == 16
    boxes = Predictor.open_vocabulary(head, ["green cone"])(picture, threshold=0).boxes  # without a config
    assert boxes.scores == pytest.approx([one["score"] for one in found["annotations"]], abs=1e-5)


def test_resumed_equals_uninterrupted_bit_for_bit(tiny, tmp_path, monkeypatch):
    from siglip2_dense.engine.train import KeepHeads

    config, begin = tiny(OWLVIT), KeepHeads.before_train_iter
    train(config, tmp_path / "whole")

    def stop(self, runner, *rest, **more):
        if runner.iter == 4:
            raise KeyboardInterrupt
        begin(self, runner, *rest, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(KeepHeads, "before_train_iter", stop)
        train(config, tmp_path / "stopped")
    with pytest.raises(UserError, match=r"cannot be resumed: protocol.example_clip"):
        train(config, tmp_path / "stopped", "model.example_clip=2.0", resume=True)
    train(config, tmp_path / "stopped", resume=True)
    a, b = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "stopped"))
    assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("clip", ["example_clip=1.0", ""])
def test_two_ranks(tiny, tool, tmp_path, clip):
    change = f"del model['example_clip']\nmodel.update({clip})\ntrain_cfg['max_iters'] = 3\n"
    pair = tool(
        "train", tiny(OWLVIT + change), "--work-dir", tmp_path / "pair", "--launcher", "pytorch", launcher=TWO_RANKS
    )
    assert pair.returncode == 0, pair.stderr
    record = json.loads((tmp_path / "pair" / "results.json").read_text())
    assert record["data"]["images"] == 3 and record["protocol"]["optimisation"]["images_per_step"] == 4
    protocol = record["protocol"]
    assert (protocol.get("example_clip"), protocol.get("clip_norm")) == ((1.0, None) if clip else (None, 1.0))


def test_the_head_alone_live_and_from_stored_features(tiny, tmp_path, monkeypatch):
    """At a rate that moves nothing: steps before training are far apart for features that are nearly the same."""
    from siglip2_dense.tasks.detection import Detection

    losses, loss = [], Detection.loss

    def noted(self, raw, geometry, samples, step):
        found = loss(self, raw, geometry, samples, step)
        losses.append((samples[0].path, [value.item() for value in found.values()]))  # one image at a time
        return found

    monkeypatch.setattr(Detection, "loss", noted)
    still = OWLVIT + FROZEN + "train_dataloader['dataset']['transforms'] = []\n"
    still += "model['heads']['detection']['optim'] = dict(type='SGD', lr=1e-12)\n"
    live = train(tiny(still, "live.py"), tmp_path / "live")
    assert live["protocol"]["encoder_mode"] == "frozen, eval" and len(losses) == 12
    config = tiny(still + "feature_store = dict(dtype='fp16')\n", "stored.py")
    options = ["--features", str(tmp_path / "features")]
    train_verb.main([str(config), "--work-dir", str(tmp_path / "stored"), *options])
    first, second = dict(losses[:12]), dict(losses[12:])  # a store has an order of its own
    assert first.keys() == second.keys() and len(first) == 5
    for path, values in first.items():
        assert values == pytest.approx(second[path], rel=2e-3)
    found = [json.loads((tmp_path / name / "detections.json").read_text()) for name in ("live", "stored")]
    assert len(found[0]) == len(found[1]) > 0
    best = [[one["bbox"] for one in results if one["image_id"] == 0][:3] for results in found]
    assert best[0][0] == pytest.approx(best[1][0], abs=0.1)
    # images on another square are others
    stores = len(list((tmp_path / "features").iterdir()))
    other = ["--cfg-options", "model.inference.size=80", "train_cfg.max_iters=1"]
    train_verb.main([str(config), "--work-dir", str(tmp_path / "other"), *options, *other])
    assert len(list((tmp_path / "features").iterdir())) == stores + 2


def test_a_head_file_fits_its_own_towers_alone(tiny, tmp_path):
    run = tmp_path / "run"
    train(tiny(OWLVIT + "train_cfg['max_iters'] = train_cfg['val_interval'] = 1\n"), run)
    head = str(run / "head.safetensors")
    with pytest.raises(UserError, match=r"text tower with weights"):
        test_verb.main([str(tiny(f"{OWLVIT}model['text']['weights'] = 'random:1'\n", "other.py")), head])
    with pytest.raises(UserError, match=r"encoder.trainable='all', the config has 'none'"):
        test_verb.main([str(tiny(OWLVIT + FROZEN, "frozen.py")), head])
    # how many drop paths there were, and the size of images, are free
    other = tiny(OWLVIT + "model['encoder']['drop_path'] = 0.5\nmodel['inference']['size'] = 80\n", "free.py")
    test_verb.main([str(other), head, "--out", str(tmp_path / "out.json"), "--work-dir", str(tmp_path / "t")])
    assert (tmp_path / "out.json").is_file()
