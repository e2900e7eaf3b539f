"""Towers in shards: two processes against two by DDP, what each of them holds, and what they leave."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import TINY
from runs import TWO_RANKS, train
from safetensors.torch import load_file
from sharded_runs import RESUMED, RUNS
from test_catseg_runs import CATSEG
from test_finetuning import TUNED
from test_owlvit_runs import OWLVIT

from siglip2_dense.cli import test as test_verb
from siglip2_dense.errors import UserError

TESTS = Path(__file__).resolve().parents[1]
# Adam divides by a gradient's size: where that is 0 but for rounding, a bias of keys say, nothing would be the same
ORDINARY = """
del model["example_clip"]
model["clip_norm"] = 0.5
model["heads"]["detection"]["optim"]["eps"] = 1e-3
for tower in ("encoder", "text"):
    model[tower]["checkpointing"] = True
del tower
"""
BF16 = """
model["encoder"]["precision"] = model["precision"] = "bf16"
train_cfg = dict(max_iters=2, val_interval=2)
"""
SHORT = """
train_cfg = dict(max_iters=3, val_interval=3)
model["heads"]["segmentation"]["optim"]["eps"] = 1e-3
"""
CONFIGS = {
    "owlvit": OWLVIT + ORDINARY,
    "bf16": OWLVIT + ORDINARY + BF16,
    "catseg": CATSEG + SHORT,
    "probe": TUNED + SHORT + 'model["clip_norm"], model["encoder_optim"]["clip_norm"] = 0.1, 0.05\n',
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the runs of ``sharded_runs.py`` have left; they take most of a minute."""
    import os

    found = tmp_path_factory.mktemp("sharded")
    for name in RUNS:
        (found / f"{name}.py").write_text(TINY + CONFIGS[name])
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *TWO_RANKS, str(TESTS / "sharded_runs.py"), str(found)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return found


def head(folder, run, name="head"):
    return load_file(folder / run / f"{name}.safetensors")


def furthest(a, b):
    assert a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)
    return max((a[key] - b[key]).abs().max().item() for key in a)


@pytest.mark.parametrize("name", RUNS)
def test_the_same_steps_as_by_ddp(folder, name):
    sharded, ddp = head(folder, f"{name}_sharded"), head(folder, f"{name}_ddp")
    assert furthest(sharded, ddp) < 1e-5
    assert furthest(head(folder, f"{name}_sharded", "best_head"), head(folder, f"{name}_ddp", "best_head")) < 1e-5
    records = [json.loads((folder / f"{name}_{way}" / "results.json").read_text()) for way in ("sharded", "ddp")]
    scores = [{key: value for key, value in record["metrics"].items() if value is not None} for record in records]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert records[0]["protocol"] == records[1]["protocol"]  # it is another way to compute the same


@pytest.mark.parametrize("name", RUNS)
def test_each_process_holds_half(folder, name):
    for rank in (0, 1):
        for own, every in json.loads((folder / f"{name}_{rank}.json").read_text()).values():
            assert 0.4 < own / every < 0.6


def test_the_head_file_is_whole_and_serves_one_process(folder, tmp_path):
    run, out = folder / "owlvit_sharded", tmp_path / "alone.json"
    arguments = [str(folder / "owlvit.py"), str(run / "head.safetensors"), "--work-dir", str(tmp_path / "t")]
    test_verb.main([*arguments, "--out", str(out)])
    assert json.loads(out.read_text())["metrics"] == json.loads((run / "results.json").read_text())["metrics"]
    alone = json.loads((tmp_path / "detections_alone.json").read_text())
    pair = json.loads((run / "detections.json").read_text())
    key = lambda one: (one["image_id"], -one["score"])  # noqa: E731
    for a, b in zip(sorted(alone, key=key), sorted(pair, key=key), strict=True):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3) and a["score"] == pytest.approx(b["score"], abs=1e-5)


@pytest.mark.parametrize(("before", "after"), RESUMED)
def test_a_stopped_run_ends_as_one_that_was_not(folder, before, after):
    apart = 0 if before == after else 1e-5
    assert furthest(head(folder, f"{before}_then_{after}"), head(folder, f"owlvit_{after}")) <= apart


def test_one_process_trains_as_without(tiny, tmp_path):
    config = tiny(OWLVIT + ORDINARY + "train_cfg = dict(max_iters=2, val_interval=2)\n")
    train(config, tmp_path / "plain")
    train(config, tmp_path / "alone", "train_cfg.sharded=True")  # without a launcher nobody is there to divide with
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    train(config, tmp_path / "group", "train_cfg.sharded=True")
    plain, alone, group = (head(tmp_path, name) for name in ("plain", "alone", "group"))
    assert all(torch.equal(plain[key], alone[key]) for key in plain)
    assert furthest(plain, group) < 1e-6


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (OWLVIT, "no rank has the gradient of an image by itself"),
        ("", "it is for towers that train"),
        (TUNED + 'model["encoder"]["compile"] = True\n', "it is compiled"),
        (
            TUNED + 'model["encoder"].update(name="test_convnext", trainable="all", weights="random")\n'
            'model["heads"]["segmentation"]["head"]["layers"] = "last"\n',
            "it is no transformer",
        ),
        (TUNED + 'train_cfg["sharded"] = 2\n', "train_cfg.sharded=2"),
    ],
)
def test_what_is_not_divided(tiny, tmp_path, monkeypatch, config, sentence):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    sharded = "" if "sharded" in config else 'train_cfg["sharded"] = True\n'
    with pytest.raises(UserError, match=sentence):
        train(tiny(config + sharded), tmp_path / "run")
    assert not (tmp_path / "run").exists()
