"""Runs of CAT-Seg from a config: both towers train, are saved, resumed and tested, with other names too."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import TWO_RANKS, train
from safetensors.torch import load_file

from siglip2_dense import Predictor, head_file
from siglip2_dense.cli import predict as predict_verb
from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.errors import UserError

CATSEG = """
model = dict(
    type="CATSeg",
    encoder=dict(
        type="FrozenEncoder", name="clip-base-16-224", weights="random", trainable=["q", "v"],
        model_args=dict(depth=3, embed_dim=48, num_heads=4, num_classes=32)),
    text=dict(model_args=dict(embed_dim=32, width=32, heads=4, layers=1), cache=False, trainable=["q", "v"]),
    encoder_optim=dict(lr_mult=0.1),
    clip_norm=0.01,
    heads=dict(
        segmentation=dict(
            head=dict(type="CATSegHead", grid=3, blocks=1),
            task=dict(type="OpenVocabulary", ignored="masked"),
            optim=dict(type="AdamW", lr=1e-3, norm_decay=0.0),
        )
    ),
    inference=dict(mode="slide", crop=32, stride=16, size=(48, 48), overview=True),
)
names = ["floor", "wall", "red box", "box", "sphere"]
train_dataloader["dataset"]["classes"] = names
train_dataloader["dataset"]["transforms"].pop()
val_dataloader["dataset"]["classes"] = names
val_dataloader["dataset"]["length"] = 3
test_dataloader = dict(
    batch_size=2, dataset=dict(type="GeneratedScenes", split="val", length=3, size=(48, 64),
                               classes=["ceiling", "blue box", "cylinder"]))
train_cfg = dict(max_iters=6, val_interval=6, save_interval=3)
benchmarks = dict(
    solids=dict(dataset=dict(type="GeneratedScenes", split="val", length=2, size=(48, 64), classes=["box", "sphere"])),
    room=dict(dataset=dict(type="GeneratedScenes", split="val", length=2, size=(48, 64), classes=["wall"]),
              queries=dict(wall=["plaster", "brick"])),
)
pictures = 1
del names
"""
FROZEN = 'del model["encoder"]["trainable"], model["text"]["trainable"], model["encoder_optim"]\n'


pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_a_run_leaves_and_its_test_with_other_names(tiny, tmp_path):
    config, run = tiny(CATSEG), tmp_path / "run"
    record = train(config, run)
    tensors, content = load_file(run / "head.safetensors"), head_file.read(run / "head.safetensors")
    assert {key.partition(".")[0] for key in tensors} == {"segmentation", "encoder", "text"}
    assert (
        content.text["trainable"] == ["q", "v"]
        and content.text["fingerprint"] == record["encoder"]["text"]["fingerprint"]
    )
    mode = record["protocol"]["encoder_mode"]
    assert (mode["trains"], mode["text_trains"], record["protocol"]["clip_norm"]) == (["q", "v"], ["q", "v"], 0.01)
    assert record["protocol"]["peak_learning_rate"] == pytest.approx(dict(segmentation=1e-3, encoder=1e-4, text=1e-4))
    scoring = record["protocol"]["heads"]["segmentation"]["scoring"]
    assert scoring["queries"]["red box"] == ["red box"] and scoring["templates"] == "scene"
    head, work = str(run / "head.safetensors"), ["--work-dir", str(tmp_path / "t")]
    same = tiny(CATSEG + "del test_dataloader\n", "same.py")
    test_verb.main([str(same), head, *work, "--out", str(tmp_path / "same.json")])
    assert json.loads((tmp_path / "same.json").read_text())["metrics"] == record["metrics"]
    test_verb.main([str(config), head, *work, "--out", str(tmp_path / "other.json")])
    other = json.loads((tmp_path / "other.json").read_text())
    assert set(other["per_class"]["IoU"]) == {"ceiling", "blue box", "cylinder"}
    assert list(other["protocol"]["heads"]["segmentation"]["scoring"]["queries"]) == ["ceiling", "blue box", "cylinder"]


def test_several_vocabularies_in_one_process(tiny, tmp_path, capsys):
    config = tiny(CATSEG)
    train(config, tmp_path / "run")
    head = str(tmp_path / "run" / "head.safetensors")
    test_verb.main([str(config), head, "--benchmarks", "all", "--work-dir", str(tmp_path / "t")])
    records = [json.loads((tmp_path / "t" / f"results_{name}.json").read_text()) for name in ("solids", "room")]
    assert [set(record["per_class"]["IoU"]) for record in records] == [{"box", "sphere"}, {"wall"}]
    assert records[1]["metrics"]["mIoU"] == 100  # one class wins everywhere, whatever it is asked for by
    assert "solids" in capsys.readouterr().out


def test_images_segmented_with_a_trained_head_and_a_background(tiny, tmp_path):
    config, image = tiny(CATSEG + "train_cfg['max_iters'] = train_cfg['val_interval'] = 1\n"), tmp_path / "a.png"
    train(config, tmp_path / "run")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(image)
    arguments = [str(image), "--config", str(config), "--head", str(tmp_path / "run" / "head.safetensors")]
    arguments += ["--out", str(tmp_path / "out"), "--overwrite", "--prompts", "cat|kitten, sky"]
    shares = {}
    for threshold in (None, "0.000001", "0.999999"):
        predict_verb.main(arguments + (["--background", threshold] if threshold else []))
        labels = json.loads((tmp_path / "out/a.json").read_text())["labels"].values()
        shares[threshold] = {one["name"]: one["share"] for one in labels}
    assert list(shares[None]) == ["cat", "sky"] and shares["0.000001"] == {"background": 0, **shares[None]}
    assert shares["0.999999"] == {"background": 1, "cat": 0, "sky": 0}
    alone = Predictor.open_vocabulary(tmp_path / "run" / "head.safetensors", ["cat|kitten", "sky"])  # without a config
    configured = Predictor.open_vocabulary(config, "cat|kitten, sky", head=tmp_path / "run" / "head.safetensors")
    found = [one(image).segmentation for one in (alone, configured)]
    assert np.array_equal(found[0].ids, found[1].ids) and found[0].names == ("cat", "sky")
    assert dict(zip(found[0].names, found[0].shares.round(6), strict=True)) == shares[None]
    with pytest.raises(UserError, match="is of open vocabulary: say what to look for"):
        Predictor(tmp_path / "run" / "head.safetensors")


def test_resumed_equals_uninterrupted_bit_for_bit_and_other_names_are_refused(tiny, tmp_path, monkeypatch):
    from siglip2_dense.engine.train import KeepHeads

    config, begin = tiny(CATSEG), KeepHeads.before_train_iter
    train(config, tmp_path / "whole")

    def stop(self, runner, *rest, **more):
        if runner.iter == 4:
            raise KeyboardInterrupt
        begin(self, runner, *rest, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(KeepHeads, "before_train_iter", stop)
        train(config, tmp_path / "stopped")
    other = tiny(CATSEG.replace('"sphere"]', '"cylinder"]', 1), "other.py")
    with pytest.raises(UserError, match=r"cannot be resumed: protocol.heads.segmentation.scoring.queries.cylinder"):
        train(other, tmp_path / "stopped", resume=True)
    train(config, tmp_path / "stopped", resume=True)
    a, b = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "stopped"))
    assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_two_ranks(tiny, tool, tmp_path):
    config = tiny(CATSEG + "train_cfg['max_iters'] = 3\n")
    pair = tool("train", config, "--work-dir", tmp_path / "pair", "--launcher", "pytorch", launcher=TWO_RANKS)
    assert pair.returncode == 0, pair.stderr
    record = json.loads((tmp_path / "pair" / "results.json").read_text())
    assert record["data"]["images"] == 3 and record["protocol"]["optimisation"]["images_per_step"] == 4


def test_stored_features_train_as_live_ones(tiny, tmp_path):
    """Windows and overview of the evaluation too."""
    frozen = CATSEG + FROZEN + "train_dataloader['dataset']['transforms'] = []\n"
    frozen += "model['heads']['segmentation']['optim'] = dict(type='SGD', lr=0.1)\n"  # Adam makes much of little
    config = tiny(frozen + "feature_store = dict(dtype='bf16')\n")
    live = train(tiny(frozen, "live.py"), tmp_path / "live")
    train_verb.main([str(config), "--work-dir", str(tmp_path / "stored"), "--features", str(tmp_path / "features")])
    stored = json.loads((tmp_path / "stored" / "results.json").read_text())
    a, b = (load_file(tmp_path / name / "head.safetensors") for name in ("live", "stored"))
    assert all(torch.allclose(a[key], b[key], atol=1e-3) for key in a)
    assert stored["metrics"]["aAcc"] == pytest.approx(live["metrics"]["aAcc"], abs=5)
    assert stored["encoder"]["features"] == "stored, bf16" and live["protocol"]["encoder_mode"] == "frozen, eval"


def test_a_sweep_over_settings(tiny, tmp_path):
    """Each setting learns what it would learn alone."""
    own = "del model['clip_norm']\nmodel['heads']['segmentation'].update(seed=0, optim=dict(type='SGD', lr=%s))\n"
    config = tiny(CATSEG + FROZEN + own % 0.1 + "sweep = dict(lr=[0.1, 0.2], holdout=0.4)\n")
    train_verb.main([str(config), "--work-dir", str(tmp_path / "sweep")])
    summary = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert len(summary["settings"]) == 2
    rate = summary["chosen"]["segmentation"]["setting"].removeprefix("lr=")
    alone = CATSEG + FROZEN + own % rate
    alone += "data = train_dataloader['dataset']\n"
    alone += "data = dict(type='Subset', part='kept', holdout=0.4, transforms=data.pop('transforms'), dataset=data)\n"
    alone += "train_dataloader['dataset'] = data\ndel data\n"
    train(tiny(alone, "alone.py"), tmp_path / "alone")
    a, b = (load_file(tmp_path / name / "head.safetensors") for name in ("sweep", "alone"))
    assert set(a) == set(b) and all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("del model['encoder']['trainable']", r"model\.text\.trainable=\['q', 'v'\] would change that"),
        (FROZEN, r"model\.clip_norm=0\.01 would bound the gradients of all settings together"),
    ],
)
def test_a_sweep_needs_towers_that_stay_and_gradients_apart(tiny, tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny(f"{CATSEG}{change}\nsweep = dict(lr=[1e-3, 1e-2], holdout=0.4)\n"), tmp_path / "sweep")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("del model['text']['trainable']", r"model.text.trainable=\['q', 'v'\], the config has 'none'"),
        ("model['text']['weights'] = 'random:1'", "text tower with weights"),
        ("model['encoder']['position_kernel'] = 'bicubic'", "positions resampled 'bicubic, antialias'"),
        ("model['heads']['segmentation']['head']['residual'] = 'own'", "residual"),
    ],
)
def test_a_head_file_fits_its_own_towers_alone(tiny, tmp_path, change, sentence):
    run = tmp_path / "run"
    train(tiny(CATSEG + "train_cfg['max_iters'] = train_cfg['val_interval'] = 1\n"), run)
    with pytest.raises(UserError, match=sentence):
        test_verb.main([str(tiny(f"{CATSEG}{change}\n", "other.py")), str(run / "head.safetensors")])


def test_how_a_head_computes_is_free(tiny, tmp_path):
    run = tmp_path / "run"
    train(tiny(CATSEG + "train_cfg['max_iters'] = train_cfg['val_interval'] = 1\n"), run)
    other = tiny(CATSEG + "model['heads']['segmentation']['head']['checkpointing'] = True\n", "other.py")
    out = ["--out", str(tmp_path / "out.json"), "--work-dir", str(tmp_path / "t")]
    test_verb.main([str(other), str(run / "head.safetensors"), *out])
    assert (tmp_path / "out.json").is_file()
