"""Runs in which parts of the encoder train with the heads."""

import json

import pytest
import torch
from runs import TWO_RANKS, train
from safetensors.torch import load_file

from siglip2_dense import head_file
from siglip2_dense.cli import test as test_verb
from siglip2_dense.encoders import FrozenEncoder
from siglip2_dense.errors import UserError

TUNED = """
model["encoder"]["trainable"] = ["q", "v"]
model["encoder_optim"] = dict(lr_mult=0.1, layer_decay=0.5)
"""


def test_what_trains_is_saved_tested_and_only_that(tiny, tmp_path):
    config = tiny(TUNED)
    record = train(config, tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "head.safetensors")
    own = {key for key in tensors if key.startswith("encoder.")}
    assert own == {f"encoder.blocks.{block}.attn.qkv.{part}" for block in range(6) for part in "qv"}
    fresh = FrozenEncoder("test_vit", "random", trainable=["q", "v"])
    start = {f"encoder.{key}": value for key, value in fresh.trained.state_dict().items()}
    assert all(not torch.equal(tensors[key], start[key]) for key in own)
    content = head_file.read(tmp_path / "run" / "head.safetensors")
    assert content.encoder.fingerprint == fresh.fingerprint  # of the weights it started from
    assert record["protocol"]["encoder_mode"]["trains"] == ["q", "v"]
    assert record["protocol"]["peak_learning_rate"] == pytest.approx({"segmentation": 1e-2, "encoder": 1e-3})
    head, out = tmp_path / "run" / "head.safetensors", tmp_path / "again.json"
    test_verb.main([str(config), str(head), "--out", str(out), "--work-dir", str(tmp_path / "t")])
    assert json.loads(out.read_text())["metrics"] == record["metrics"]
    with pytest.raises(UserError, match=r"model.encoder.trainable=\['q', 'v'\]"):
        test_verb.main([str(tiny(name="plain.py")), str(head)])


def test_the_head_alone_does_not_give_the_same(tiny, tmp_path):
    frozen, tuned = train(tiny(), tmp_path / "frozen"), train(tiny(TUNED), tmp_path / "tuned")
    a, b = (load_file(tmp_path / name / "head.safetensors") for name in ("frozen", "tuned"))
    assert any(not torch.equal(a[key], b[key]) for key in a)
    assert frozen["protocol"]["encoder_mode"] == "frozen, eval"
    assert frozen["encoder"]["fingerprint"] == tuned["encoder"]["fingerprint"]


def test_resumed_equals_uninterrupted_bit_for_bit(tiny, tmp_path, monkeypatch):
    from siglip2_dense.engine.train import KeepHeads

    config = tiny(TUNED)
    train(config, tmp_path / "whole")
    step = KeepHeads.before_train_iter

    def stop(self, runner, *rest, **more):
        if runner.iter == 7:
            raise KeyboardInterrupt
        step(self, runner, *rest, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(KeepHeads, "before_train_iter", stop)
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped", resume=True)
    a, b = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "stopped"))
    assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_two_ranks_wait_for_no_gradient_that_never_comes(tiny, tool, tmp_path):
    config = tiny(
        'model["encoder"]["trainable"] = "all"\nmodel["encoder_optim"] = dict(lr_mult=0.1)\n'
        'model["heads"]["segmentation"]["head"]["layers"] = [2]\ntrain_cfg["max_iters"] = 3\n'
    )
    pair = tool("train", config, "--work-dir", tmp_path / "pair", "--launcher", "pytorch", launcher=TWO_RANKS)
    assert pair.returncode == 0, pair.stderr
    tensors = load_file(tmp_path / "pair" / "head.safetensors")
    assert "encoder.blocks.2.mlp.fc2.weight" in tensors and "encoder.blocks.3.mlp.fc2.weight" not in tensors
    out = tmp_path / "alone.json"
    alone = tool("test", config, tmp_path / "pair" / "head.safetensors", "--work-dir", tmp_path / "t", "--out", out)
    assert alone.returncode == 0, alone.stderr
    pair_metrics = json.loads((tmp_path / "pair" / "results.json").read_text())["metrics"]
    assert json.loads(out.read_text())["metrics"] == pair_metrics


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ('model["encoder"]["trainable"] = 1', "say how the encoder trains"),
        ('model["encoder_optim"] = dict(lr_mult=0.1)', "nothing of the encoder trains"),
        (TUNED.replace("0.1", "0.0"), "lr_mult=0.0"),
        (TUNED.replace("0.5", "1.5"), "layer_decay=1.5; give a number above 0, at most 1"),
        (TUNED.replace("layer_decay", "layr_decay"), "layr_decay"),
        (TUNED + 'param_scheduler = [dict(type="OneCycleLR", eta_max=1.0, total_steps=12)]', "eta_max"),
        (TUNED + 'param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-4, T_max=12)]', "eta_min_ratio"),
        (TUNED + 'del model["heads"]["segmentation"]["optim"]["lr"]', "no learning rate"),
        (TUNED + 'model["heads"]["encoder"] = model["heads"].pop("segmentation")', "heads.encoder"),
    ],
)
def test_settings_that_do_not_fit(tiny, tmp_path, extra, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny(extra), tmp_path / "run")
