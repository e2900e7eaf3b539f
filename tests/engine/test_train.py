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
from siglip2_dense.errors import UserError, first_difference


def train(config, work_dir, *options, **flags):
    arguments = [str(config), "--work-dir", str(work_dir)]
    for flag, value in flags.items():
        arguments += [f"--{flag}", *([] if value is True else [str(value)])]
    if options:
        arguments += ["--cfg-options", *options]
    train_verb.main(arguments)
    return json.loads((work_dir / "results.json").read_text())


def test_a_run_leaves_head_record_pictures_and_curves(tiny, tmp_path, capsys):
    record = train(tiny(), tmp_path / "run")
    assert "evaluating val at step 12: 7 images in 00:0" in capsys.readouterr().err
    assert set(record) == {
        "metrics", "per_class", "intervals", "oracle", "best", "encoder", "protocol", "data", "run", "history",
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
    assert content.step == 12 and content.heads["segmentation"]["meaning"]["classes"][0] == "floor"
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
    assert not first_difference(record["protocol"], again["protocol"])


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


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("model.heads.segmentation.head.norm=False", r"reads|heads.segmentation"),
        ("model.heads.segmentation.head.layers=[1,2,3,5]", "heads.segmentation"),
        ("model.heads.segmentation.head.pooled=concat", "heads.segmentation"),
    ],
)
def test_a_head_that_would_read_other_features_is_refused(tiny, tmp_path, option, sentence):
    config = tiny()
    train(config, tmp_path / "run", "train_cfg.max_iters=1")
    head = str(tmp_path / "run" / "head.safetensors")
    with pytest.raises(UserError, match=sentence):
        test_verb.main([str(config), head, "--work-dir", str(tmp_path), "--cfg-options", option])


def test_a_head_whose_classes_stand_in_another_order_is_refused(tiny, tmp_path):
    from siglip2_dense.label_sets import CLASSES

    train(tiny(), tmp_path / "run", "train_cfg.max_iters=1")
    content = head_file.read(tmp_path / "run" / "head.safetensors")
    content.heads["segmentation"]["meaning"]["classes"] = list(reversed(CLASSES["generated"]))
    head_file.save(tmp_path / "other.safetensors", content)
    with pytest.raises(UserError, match=r"meaning.classes.0 was 'cylinder' in the file and is 'floor' now"):
        test_verb.main([str(tiny()), str(tmp_path / "other.safetensors"), "--work-dir", str(tmp_path)])


def test_whatever_fails_in_the_evaluation_the_head_is_kept_and_can_go_on(tiny, tmp_path, monkeypatch):
    from siglip2_dense.engine import train as module

    config, evaluate = tiny(), module.evaluate
    train(config, tmp_path / "whole")
    monkeypatch.setattr(module, "evaluate", lambda *a: (_ for _ in ()).throw(UserError("a bad image")))
    with pytest.raises(UserError, match="a bad image"):
        train(config, tmp_path / "run")
    assert head_file.read(tmp_path / "run" / "head.safetensors").step == 6
    monkeypatch.setattr(module, "evaluate", evaluate)
    record = train(config, tmp_path / "run", resume=True)
    assert [entry["step"] for entry in record["history"]] == [6, 12]
    assert record["history"] == json.loads((tmp_path / "whole" / "results.json").read_text())["history"]


@pytest.mark.parametrize("option", ["seed=0", "model.canvas=(32,32)"])
def test_no_worker_outlives_its_run(tiny, tmp_path, option):
    import multiprocessing

    changes = [option, "train_cfg.max_iters=1", "val_dataloader.num_workers=1"]
    if option == "seed=0":
        train(tiny(), tmp_path / "run", *changes)
    else:
        with pytest.raises(UserError, match="canvas") as failure:  # its traceback is alive here, and holds the loader
            train(tiny(), tmp_path / "run", *changes)
        assert failure.tb
    assert not multiprocessing.active_children()


def test_a_work_dir_that_holds_a_run_is_not_written_over(tiny, tmp_path):
    config = tiny()
    train(config, tmp_path, "train_cfg.max_iters=1")
    before = (tmp_path / "head.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds a run already .* --resume"):
        train(config, tmp_path, "train_cfg.max_iters=1")
    assert (tmp_path / "head.safetensors").read_bytes() == before


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
    assert set(state["trained"]) == set(tensors)


def test_a_run_that_is_resumed_is_the_run_that_was_not_stopped(tiny, tmp_path):
    config = tiny()
    train(config, tmp_path / "whole")
    train(config, tmp_path / "again", resume=True)  # nothing there yet
    first, second = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    before = (tmp_path / "again" / "results.json").read_text()
    train(config, tmp_path / "again", resume=True)  # already finished
    assert json.loads(before)["metrics"] == json.loads((tmp_path / "again" / "results.json").read_text())["metrics"]
    with pytest.raises(UserError, match=r"optimisation.iterations was 12 in the saved run and is 14 now"):
        train(config, tmp_path / "again", "train_cfg.max_iters=14", resume=True)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_head(tiny, tmp_path):
    schedule = "param_scheduler = [dict(type='MultiStepLR', milestones=[3], gamma=1e33, by_epoch=False)]"
    with pytest.raises(UserError, match=r"not a finite number by step \d+; the last good head is .*head.safetensors"):
        train(tiny(schedule), tmp_path / "run")
    kept = head_file.read(tmp_path / "run" / "head.safetensors")
    assert kept.step == 3 and all(tensor.isfinite().all() for tensor in kept.tensors.values())


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("train_cfg.max_iter=3", "did you mean 'max_iters'"),
        ("model.heads.segmentation.head.layer=last", "did you mean 'layers'"),
        ("model.heads.segmentation.sed=7", "did you mean 'seed'"),
        ("modle.encoder.name=x", "did you mean 'model'"),
        ("train_dataloader.dataset.transforms.5.p=1", "has 2 items"),
        ("seed.x=1", "has no settings of its own"),
        ("seed", "write KEY=VALUE"),
        ("seed=-1", "seed=-1"),
        ("train_cfg.max_iters=0", "whole number from 1 on"),
        ("model.heads.segmentation.optim.type=AdamV", "did you mean 'Adam'"),
        ("model.heads.segmentation.optim.lrr=1", "did you mean 'lr'"),
        ("param_scheduler.0.type=PolyRL", "did you mean 'PolyLR'"),
        ("param_scheduler.0.powr=2", "did you mean 'power'"),
        ("train_dataloader.dataset.transforms.1.size=40", "height, width"),
        ("model.canvas=(32,32)", "does not fit on the canvas"),
        ("model.encoder.model_args.deepness=3", "model_args="),
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
        ("model['inference'] = dict(mode='slide', crop=32, stride=48)", "leave gaps"),
        ("del model['heads']['segmentation']['task']", "has no 'task'"),
        ("del model", "does not set 'model"),
        ("param_scheduler = [dict(type='PolyLR', powr=1)]", "did you mean 'power'"),
        (
            "model['heads']['segmentation']['head'] = dict(type='mmseg.FNCHead')",
            "cannot build mmseg.FNCHead",
        ),
        ("_base_ = ['nothing.py']", "cannot be read as a config"),
        ("val_dataloader['dataset']['transforms'] = [dict(type='Resize', size=(40, 40))]", "targets=False"),
        ("train_dataloader['dataset']['transforms'] = [dict(type='ResizeShortSide', short=40)]", "targets=True"),
        ("del train_cfg", "does not set 'train_cfg.max_iters'"),
        ("model = dict(", "cannot be read as a config"),
    ],
)
def test_configs_that_are_wrong(tiny, tmp_path, extra, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny(extra), tmp_path)


def test_options_not_written_in_the_config_can_be_set(tiny, tmp_path):
    record = train(tiny(), tmp_path, "model.encoder.precision=bf16", "train_cfg.max_iters=1")
    assert record["encoder"]["precision"] == "bf16"


def test_a_head_can_be_given_a_seed_on_the_command_line(tiny, tmp_path):
    heads = []
    for name, options in (("first", ()), ("again", ()), ("other", ("model.heads.segmentation.seed=7",))):
        train(tiny(), tmp_path / name, *options, "train_cfg.max_iters=1", "pictures=0")
        heads.append(load_file(tmp_path / name / "head.safetensors"))
    assert all(torch.equal(heads[1][name], value) for name, value in heads[0].items())
    assert not all(torch.equal(heads[2][name], value) for name, value in heads[0].items())


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
