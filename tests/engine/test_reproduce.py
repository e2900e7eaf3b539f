"""A row of a table: its steps in order, with costs; what is done is left out, and what was killed goes on."""

import json
import os
import shlex
import sys
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file

from siglip2_dense.benchmark.camvid import fewer
from siglip2_dense.cli import common
from siglip2_dense.cli import reproduce as verb
from siglip2_dense.cli.common import read_config
from siglip2_dense.engine import reproduce as engine
from siglip2_dense.engine import steps, tables, train
from siglip2_dense.engine.configs import find_config
from siglip2_dense.engine.devices import DEVICES
from siglip2_dense.engine.plan import plan
from siglip2_dense.engine.tables import TABLES, Column, HeadTest, Table
from siglip2_dense.errors import UserError
from siglip2_dense.files import load_tensors

SCENES = ("--encoder", "test_vit", "--weights", "random")


@pytest.fixture
def called(monkeypatch):
    """The verbs that were called, in this process; the report, which is another room's, only notes its arguments."""
    seen = []

    def run(command):
        arguments = command[command.index("siglip2_dense") + 1 :]
        seen.append(arguments)
        name, *rest = arguments
        code = 0 if name == "report" else common.run(import_module(f"siglip2_dense.cli.{name}").main, rest)
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(steps, "subprocess", SimpleNamespace(run=run))
    return seen


@pytest.fixture
def row(tiny, monkeypatch):
    """``row(*columns)``: a table "mini" of configs; by default one, of generated scenes, with a test."""

    def make(*columns):
        columns = columns or (Column(str(tiny()), (HeadTest("test"),)),)
        monkeypatch.setitem(tables.TABLES, "mini", Table("some", tuple(columns), encoder="test_vit"))

    return make


def reproduce(tmp_path, *arguments):
    verb.main(["mini", *SCENES, "--work-dir", str(tmp_path / "row"), "--device", "h100", *arguments])


def verbs(called):
    return [arguments[0] for arguments in called]


def test_a_dry_run_prints_steps_in_order_with_what_they_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    common_arguments = ["table2", "--encoder", "siglip2-base-16-256", "--dry-run", "--device", "h100"]
    verb.main([*common_arguments, "--launcher", "pytorch", "--processes", "4"])
    lines = capsys.readouterr().out.splitlines()
    titles = [line[5:49].strip() for line in lines[:-1:2]]
    assert titles == [
        "verify pascal", "train probe_pascal", "verify ade20k", "train probe_ade20k", "verify nyuv2",
        "train probe_nyuv2_depth", "verify navi", "train probe_navi_depth", "verify nyuv2_geonet",
        "verify nyuv2_labelled", "train probe_nyuv2_normals", "train probe_navi_normals", "report",
    ]  # fmt: skip
    place = "work_dirs/table2_siglip2-base-16-256"
    assert shlex.split(lines[3]) == [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4", "-m", "siglip2_dense",
        "train", "probe_pascal", "--encoder", "siglip2-base-16-256", "--work-dir", f"{place}/probe_pascal",
        "--launcher", "pytorch", "--resume", "--cfg-options", "train_dataloader.batch_size=4",
    ]  # fmt: skip
    assert shlex.split(lines[1])[1:] == ["-m", "siglip2_dense", "data", "verify", "pascal"]
    assert (
        shlex.split(lines[-2])[-2:] == ["--out", f"{place}/report"] and "13 of 13 steps to do; 6 of them" in lines[-1]
    )
    config = read_config(find_config("probe_pascal"))
    config.model.encoder.name = "siglip2-base-16-256"
    seconds = plan(config, DEVICES["h100"])["seconds"]["straight"]["total"] / 4
    hours, minutes, rest = map(int, lines[2][49:57].split(":"))
    assert abs(3600 * hours + 60 * minutes + rest - seconds) <= 1
    assert "without evaluation, of an unknown number of images" in lines[14]  # NAVI's counts are not published
    monkeypatch.setitem(tables.TABLES, "table2", Table("some", (Column("probe_pascal"),)))
    verb.main([*common_arguments, "--features", "features", "--data", "my sets"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert shlex.split(first) == ["export", f"SIGLIP2_DENSE_DATA={tmp_path / 'my sets'}"]  # the lines work by hand
    assert [line[5:49].strip() for line in lines[2:6:2]] == ["extract features of probe_pascal", "train probe_pascal"]
    config.feature_store = dict(dir="features")
    stored = plan(config, DEVICES["h100"])["seconds"]["stored"]
    assert lines[2].split()[-1] == verb._duration(stored["extraction"] + stored["extraction_of_windows"])
    assert not list(tmp_path.iterdir())  # nothing was written, and nothing fetched


def test_what_is_done_is_left_out(row, called, tmp_path, capsys):
    row()
    reproduce(tmp_path)
    place = tmp_path / "row" / "tiny"
    assert verbs(called) == ["train", "test", "report"] and called[-1][1:] == [
        str(place), "--out", str(tmp_path / "row" / "report"),
    ]  # fmt: skip
    record = json.loads((place / "results.json").read_text())
    assert record["run"]["seed"] == 0 and (place / "results_test.json").is_file()
    called.clear()
    capsys.readouterr()
    reproduce(tmp_path)
    assert verbs(called) == ["report"] and capsys.readouterr().out.count("done already") == 2
    assert json.loads((place / "results.json").read_text()) == record
    (place / "results_test.json").unlink()
    reproduce(tmp_path, "--dry-run")
    out = capsys.readouterr().out
    assert "train tiny" in out and out.count("done already") == 1 and "2 of 3 steps to do" in out


@pytest.mark.parametrize(
    ("change", "arguments", "difference"),
    [
        (
            "model['heads']['segmentation']['optim']['lr'] = 1e-3",
            (),
            "heads.segmentation.optim.lr was 0.01 in the record",
        ),
        ("train_cfg['max_iters'] = 13", (), "optimisation.iterations was 12"),
        ("val_dataloader['dataset']['length'] = 8", (), "val_data.fingerprint was"),
        ("seed = 1", (), "head_seeds.segmentation was 0 in the record and is 1"),
        ("", ("--encoder", "test_vit3"), "encoder.[a-z]+ was"),
    ],
)
def test_a_finished_run_of_another_kind_is_left_alone(row, tiny, called, tmp_path, change, arguments, difference):
    row()
    reproduce(tmp_path)
    kept = (tmp_path / "row" / "tiny" / "head.safetensors").read_bytes()
    row(Column(str(tiny(change))))
    called.clear()
    with pytest.raises(UserError, match=rf"row/tiny holds another run, which is finished: .*{difference}"):
        reproduce(tmp_path, *arguments)
    assert not called and (tmp_path / "row" / "tiny" / "head.safetensors").read_bytes() == kept


def test_a_finished_run_on_other_weights_is_left_alone(row, called, tmp_path):
    row()
    reproduce(tmp_path)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"another run, which is finished: encoder.fingerprint was"):
        reproduce(tmp_path, "--weights", str(tmp_path / "other.safetensors"))


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(row, called, tmp_path, monkeypatch, capsys, one_thread):
    row()
    reproduce(tmp_path / "whole")
    after = train.KeepHeads.after_train_iter

    def killed(self, runner, batch_idx, data_batch=None, outputs=None):
        after(self, runner, batch_idx, data_batch, outputs)
        if runner.iter + 1 == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.KeepHeads, "after_train_iter", killed)
        with pytest.raises(UserError, match=r"not done: train tiny failed, .* goes on from there"):
            reproduce(tmp_path / "cut")
    assert verbs(called)[-1] == "train"  # neither a test nor a report of what is not there
    capsys.readouterr()
    reproduce(tmp_path / "cut", "--dry-run")
    assert "goes on from the last saved step" in capsys.readouterr().out
    reproduce(tmp_path / "cut")
    whole, cut = (load_tensors(tmp_path / name / "row" / "tiny" / "head.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, cut[key]) for key, tensor in whole.items())


def test_benchmarks_that_are_done_are_not_done_again(tmp_path, monkeypatch, capsys):
    """Sets that a user does not have fail each time, and cost the others nothing."""
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path))
    place = tmp_path / "row" / "catseg_siglip2_large"
    place.mkdir(parents=True)
    record = {
        "metrics": {}, "encoder": {"fingerprint": "f"}, "protocol": {}, "data": {}, "run": {}, "history": [{"step": 9}],
    }  # fmt: skip
    (place / "head.safetensors").touch()
    for name, fingerprint in (("ade150", "f"), ("voc20", "f"), ("voc21", "another")):
        (place / f"results_{name}.json").write_text(json.dumps({**record, "encoder": {"fingerprint": fingerprint}}))
    monkeypatch.setattr(engine, "_trained", lambda asked: record)
    arguments = ["table3", "--encoder", "siglip2-large-16-384", "--work-dir", str(tmp_path / "row"), "--dry-run"]
    verb.main([*arguments, "--device", "h100"])
    assert "--benchmarks ade847,pc459,pc59,voc21\n" in capsys.readouterr().out
    os.utime(place / "results_voc20.json", (0, 0))  # of the head before
    verb.main([*arguments, "--device", "h100"])
    assert "--benchmarks ade847,pc459,pc59,voc20,voc21\n" in capsys.readouterr().out
    monkeypatch.setattr(engine, "_trained", lambda asked: None)
    verb.main([*arguments, "--device", "h100"])
    assert "--benchmarks all\n" in capsys.readouterr().out


def test_a_step_that_fails_ends_its_column_alone(row, tiny, called, tmp_path, capsys):
    broken = "train_dataloader['dataset']['length'] = 0"
    row(Column(str(tiny(broken, "broken.py")), (HeadTest("test"),)), Column(str(tiny())))
    with pytest.raises(UserError, match="not done: train broken failed"):
        reproduce(tmp_path)
    assert [arguments[:2] for arguments in called[:2]] == [
        ["train", str(tmp_path / name)] for name in ("broken.py", "tiny.py")
    ]
    assert called[2] == ["report", str(tmp_path / "row" / "tiny"), "--out", str(tmp_path / "row" / "report")]
    assert "test broken on test: left out, since train broken failed" in capsys.readouterr().out


def test_a_run_over_several_processes_is_of_the_same_row(row, called, tmp_path, capsys, monkeypatch):
    """What of a protocol says over how many processes its steps were spread does not matter, the rest does."""
    row()
    reproduce(tmp_path)
    path = tmp_path / "row" / "tiny" / "results.json"
    record = json.loads(path.read_text())
    record["protocol"]["optimisation"] |= {"images_per_process": 1, "batch_norm": "over all processes"}
    path.write_text(json.dumps(record))
    capsys.readouterr()
    reproduce(tmp_path, "--dry-run", "--launcher", "pytorch", "--processes", "2")
    assert "train tiny                                  done already" in capsys.readouterr().out
    record["protocol"]["optimisation"]["images_per_step"] = 1
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"images_per_step was 1 in the record and is 2 now"):
        reproduce(tmp_path, "--dry-run")


def test_how_verbs_are_spread(monkeypatch, tmp_path, capsys):
    slurm = steps.Launch("slurm", 16)
    assert slurm.command(["train", "a"])[:4] == ["srun", "--ntasks", "16", "--kill-on-bad-exit=1"]
    assert slurm.command(["report", "a"])[0] == sys.executable
    assert steps.Launch("pytorch", 2).batch_size(16) == 8
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path))
    row = ["table4", "--encoder", "siglip2-base-16-512", "--dry-run", "--device", "h100", "--work-dir", str(tmp_path)]
    verb.main([*row, "--launcher", "slurm", "--processes", "16"])
    out = capsys.readouterr().out
    assert "train owlvit_siglip2_base " in out and "batch_size=16 test_dataloader.dataset.type=CocoDetection" in out
    assert "(no estimate: DetectionMixture: its images are made of those of other sets" in out
    verb.main(row)  # 256 images a step in any case
    assert "train_dataloader.batch_size=256" in capsys.readouterr().out
    for arguments, sentence in (
        (["--launcher", "pytorch", "--processes", "3"], "--processes 3: the 256 images of a step cannot be shared"),
        (["--processes", "2"], "--processes 2: give 1 or more, and with more than one --launcher"),
    ):
        with pytest.raises(UserError, match=sentence):
            verb.main([*row, *arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["table3", "--encoder", "dinov2-base-14"],
            "table3 is of encoders that were trained with texts, and dinov2-base",
        ),
        (["table4", "--encoder", "vit_small_patch14_dinov2"], "table4 is of encoders .* --text shows"),
        (
            ["table4", "--encoder", "siglip2-large-16-384"],
            "table4 has no settings for siglip2-large-16-384: .*base-16-384,",
        ),
        (["table2"], "table2 needs --encoder NAME"),
        (["table2", "--encoder", "siglip2-base-16-25"], "did you mean 'siglip2-base-16-25"),
    ],
)
def test_an_encoder_that_a_table_is_not_for_is_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        verb.main([*arguments, "--dry-run", "--device", "h100"])


def test_a_row_has_the_config_of_its_encoder():
    encoders = {
        column.config: read_config(find_config(column.config)).model.encoder.name
        for name in ("table3", "table4")
        for column in TABLES[name].columns
    }

    def config_of(table, encoder):
        found, columns = tables.row_of(table, encoder, encoders, data=False)
        assert found == encoder
        return [column.config for column in columns]

    for config, encoder in encoders.items():
        assert config_of("table3" if config.startswith("catseg") else "table4", encoder) == [config]
    assert config_of("table3", "siglip2-large-16-512") == ["catseg_siglip2_large"]
    assert config_of("table3", "clip-large-14-224") == ["catseg_clip_large"]
    assert config_of("table4", "siglip-so400m-14-384") == ["owlvit_siglip_so400m"]


def mini(real, tmp_path):
    """The miniature's configs with fewer steps, and fewer images of the two real sets."""
    data = fewer(real("camvid").parent, tmp_path / "data")
    kitchen = real("sevenscenes_redkitchen")
    for path in (kitchen / "intrinsics.txt", *sorted(kitchen.glob("*/*/*"))[::25]):
        link = data / "sevenscenes_redkitchen" / path.relative_to(kitchen)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    columns = []
    for column in TABLES["mini"].columns:
        text = f"_base_ = [{str(find_config(column.config))!r}]\ntrain_cfg = dict(max_iters=3, val_interval=3)\n"
        text += "pictures = 1\nparam_scheduler = []\n"
        if column.config == "probe_demo":
            text += "train_dataloader = dict(dataset=dict(length=8))\nval_dataloader = dict(dataset=dict(length=4))\n"
        (tmp_path / f"{column.config}.py").write_text(text)
        columns.append(Column(str(tmp_path / f"{column.config}.py"), column.tests, own_data=column.own_data))
    return data, columns


def test_the_miniature_from_the_data_to_the_report(row, real, called, tmp_path, one_thread, monkeypatch):
    monkeypatch.setenv("SIGLIP2_DENSE_DATA", str(tmp_path))  # --data puts another in its place
    data, columns = mini(real, tmp_path)
    row(*columns)
    weights = data / "weights" / "tf_efficientnet_lite0_in1k_fp16.safetensors"
    arguments = [
        "mini",
        "--encoder",
        "efficientnet-lite0",
        "--weights",
        str(weights),
        "--work-dir",
        str(tmp_path / "row"),
    ]
    verb.main([*arguments, "--data", str(data), "--features", str(tmp_path / "features")])
    assert [" ".join(step[: 2 if step[0] in ("data", "features") else 1]) for step in called] == [
        "features extract", "train", "data verify", "features extract", "train", "test", "data verify",
        "features extract", "train", "report",
    ]  # fmt: skip
    scores = {}
    for column in ("probe_demo", "mini_camvid", "mini_kitchen"):
        record = json.loads((tmp_path / "row" / column / "results.json").read_text())
        assert record["encoder"]["features"] == "stored, fp16"
        scores[column] = record["metrics"]
    assert 0 < scores["probe_demo"]["segmentation.mIoU"] < 100 and 0 < scores["mini_camvid"]["mIoU"] < 100
    assert 0 < scores["mini_kitchen"]["depth.rmse"] < 5 and 10 < scores["mini_kitchen"]["normals.rmse"] < 120
    assert len(called[-1]) == 6
    called.clear()
    verb.main([*arguments, "--data", str(data), "--features", str(tmp_path / "features")])
    assert verbs(called) == ["report"]
    row(*(column for column in columns if not column.own_data))
    verb.main([*arguments, "--features", str(tmp_path / "features")])  # without a folder, the scenes alone
    assert called[-1][1:-2] == [str(tmp_path / "row" / "probe_demo")]


@pytest.mark.skipif(
    None in (find_spec("siglip2_dense.__main__"), find_spec("siglip2_dense.report")),
    reason="verbs that are not there yet",
)
def test_over_two_processes_and_with_its_report(row, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    row(Column(str(tiny())))
    reproduce(tmp_path, "--launcher", "pytorch", "--processes", "2")
    record = json.loads((tmp_path / "row" / "tiny" / "results.json").read_text())
    optimisation = record["protocol"]["optimisation"]
    assert (optimisation["images_per_step"], optimisation["images_per_process"]) == (2, 1)
    assert any((tmp_path / "row" / "report").iterdir())
