"""A run from its config to its files: what is written, kept, refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from siglip2_dense import head_file
from siglip2_dense.cli import common
from siglip2_dense.cli import test as test_verb
from siglip2_dense.cli import train as train_verb
from siglip2_dense.engine.configs import find_config
from siglip2_dense.engine.resume import first_difference
from siglip2_dense.errors import UserError


def train(config, work_dir, *options, **flags):
    arguments = [str(config), "--work-dir", str(work_dir)]
    for flag, value in flags.items():
        arguments += [f"--{flag}", *([] if value is True else [str(value)])]
    if options:
        arguments += ["--cfg-options", *options]
    train_verb.main(arguments)
    return json.loads((work_dir / "results.json").read_text())


def test_a_run_leaves_head_record_pictures_and_curves(tiny, tmp_path):
    record = train(tiny(), tmp_path / "run")
    assert set(record) == {
        "metrics", "per_class", "intervals", "best", "encoder", "protocol", "data", "run", "history",
    }  # fmt: skip
    assert [entry["step"] for entry in record["history"]] == [6, 12]
    assert record["metrics"] == record["history"][-1]["metrics"]
    assert record["best"]["metrics"]["mIoU"] == max(entry["metrics"]["mIoU"] for entry in record["history"])
    assert record["best"]["split"] == record["data"]["split"] == "val" and record["data"]["images"] == 7
    low, high = record["intervals"]["mIoU"]
    assert low <= record["metrics"]["mIoU"] <= high
    assert set(record["per_class"]["IoU"]) == {"floor", "wall", "ceiling", "box", "sphere", "cylinder"}
    assert record["encoder"]["taps"][-1] == {"block": 5, "norm": True}
    assert record["protocol"]["peak_learning_rate"]["segmentation"] == pytest.approx(1e-2)
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    content = head_file.read(tmp_path / "run" / "head.safetensors")
    assert content.step == 12 and content.heads["segmentation"]["task"]["classes"][0] == "floor"
    assert content.encoder.name == "test_vit" and content.metrics == record["metrics"]
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.pth"))


def test_testing_the_head_gives_the_numbers_of_training(tiny, tmp_path):
    config = tiny()
    record = train(config, tmp_path / "run")
    head = tmp_path / "run" / "head.safetensors"
    test_verb.main([str(config), str(head), "--out", str(tmp_path / "again.json"), "--work-dir", str(tmp_path / "t")])
    again = json.loads((tmp_path / "again.json").read_text())
    for key in ("metrics", "per_class", "intervals", "encoder", "data"):
        assert again[key] == record[key]
    assert not first_difference(
        {**record["protocol"], "peak_learning_rate": 0}, {**again["protocol"], "peak_learning_rate": 0}
    )


def test_the_encoder_is_swapped_by_one_word_and_its_head_refused_elsewhere(tiny, tmp_path):
    config = tiny()
    for name in ("test_vit3", "test_convnext", "vit_tiny_patch16_224"):
        record = train(config, tmp_path / name, "train_cfg.max_iters=1", encoder=name, weights="random")
        assert record["encoder"]["name"] == name
    with pytest.raises(UserError, match=r"trained on test_convnext .* does not fit test_vit"):
        test_verb.main([str(config), str(tmp_path / "test_convnext" / "head.safetensors"), "--work-dir", str(tmp_path)])
    arguments = [str(config), str(tmp_path / "test_vit3" / "head.safetensors"), "--work-dir", str(tmp_path)]
    with pytest.raises(UserError, match=r"test_vit3 with the same weights"):  # same name, other weights
        test_verb.main([*arguments, "--encoder", "test_vit3", "--weights", "random:1"])


def test_the_encoder_is_the_same_after_training_and_never_in_a_file(tiny, tmp_path, monkeypatch):
    from siglip2_dense.encoders.weights import fingerprint
    from siglip2_dense.engine.run import Run
    from siglip2_dense.engine.train import train as engine_train

    arguments = type("A", (), dict(config=str(tiny()), encoder=None, weights=None, work_dir=str(tmp_path / "r")))
    arguments.cfg_options, arguments.launcher = [], "none"
    run = Run(common.load_config(arguments))
    before = fingerprint(run.probe.encoder.tower)
    engine_train(run)
    assert fingerprint(run.probe.encoder.tower) == before == run.probe.encoder.fingerprint
    for name in ("head.safetensors", "best_head.safetensors"):
        tensors = load_file(tmp_path / "r" / name)
        assert tensors and all(key.startswith("segmentation.") for key in tensors)
    state = torch.load(tmp_path / "r" / "resume.pt", weights_only=True)
    assert set(state["heads"]) == set(tensors)


def test_a_run_that_is_resumed_is_the_run_that_was_not_stopped(tiny, tmp_path):
    """Stopped at a saved step, by a limit here; killed anywhere: test_kill.py."""
    config = tiny()
    train(config, tmp_path / "whole")
    train(config, tmp_path / "again", resume=True)  # nothing there yet
    first, second = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    before = (tmp_path / "again" / "results.json").read_text()
    train(config, tmp_path / "again", resume=True)  # already finished
    assert json.loads(before)["metrics"] == json.loads((tmp_path / "again" / "results.json").read_text())["metrics"]
    with pytest.raises(UserError, match=r"optimisation.iterations was 12 and is now 14"):
        train(config, tmp_path / "again", "train_cfg.max_iters=14", resume=True)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_head(tiny, tmp_path):
    config = tiny()
    train(config, tmp_path / "run", "train_cfg.max_iters=3")
    good = (tmp_path / "run" / "head.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"not a finite number by step \d+; the last good head is .*head.safetensors"):
        train(config, tmp_path / "run", "model.heads.segmentation.optim.lr=1e30")
    assert (tmp_path / "run" / "head.safetensors").read_bytes() == good


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("train_cfg.max_iter=3", "did you mean 'max_iters'"),
        ("model.heads.segmentation.head.layer=last", "did you mean 'layers'"),
        ("modle.encoder.name=x", "did you mean 'model'"),
        ("train_dataloader.dataset.transforms.5.p=1", "has 2 items"),
        ("seed.x=1", "has no settings of its own"),
        ("seed", "write KEY=VALUE"),
    ],
)
def test_overrides_that_do_not_exist(tiny, tmp_path, option, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny(), tmp_path, option)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("modell = 1", "did you mean 'model'"),
        ("train_cfg['max_iter'] = 3", "did you mean"),
        ("model['encoder']['layer'] = 'last'", "FrozenEncoder has no setting 'layer'"),
        ("model['type'] = 'DenseProb'", "did you mean 'DenseProbe'"),
        ("model['heads']['segmentation']['task']['classes'] = ['a', 'b']", "has 2 classes .* the data 6"),
        ("model['heads']['segmentation']['optimizer'] = 1", "did you mean 'optim'"),
        ("model['inference'] = dict(mode='slid')", "inference="),
        ("del train_cfg", "does not set 'train_cfg'"),
        ("model = dict(", "cannot be read as a config"),
    ],
)
def test_configs_that_are_wrong(tiny, tmp_path, extra, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny(extra), tmp_path)


def test_options_not_written_in_the_config_can_be_set(tiny, tmp_path):
    record = train(tiny(), tmp_path, "model.encoder.precision=bf16", "train_cfg.max_iters=1")
    assert record["encoder"]["precision"] == "bf16"


def test_config_by_name_or_nearest():
    assert find_config("probe_ade20k").name == "probe_ade20k.py"
    assert find_config("configs/probe_ade20k.py").is_file()
    with pytest.raises(UserError, match="did you mean 'probe_ade20k'"):
        find_config("probe_ad20k")


def test_truncated_head(tiny, tmp_path):
    train(tiny(), tmp_path, "train_cfg.max_iters=1")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "head.safetensors").read_bytes()[:900])
    with pytest.raises(UserError, match="truncated"):
        head_file.read(cut)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a head file"):
        head_file.read(tmp_path / "other.safetensors")
