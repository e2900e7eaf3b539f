"""Where curves go by one word. MLflow and W&B run where they are installed; else a module that records the calls."""

import json
import struct
import sys
from types import ModuleType, SimpleNamespace

import pytest
from runs import train

from siglip2_dense.cli import train as train_verb
from siglip2_dense.engine.loggers import backends
from siglip2_dense.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ("train_cfg.max_iters=4", "train_cfg.val_interval=2", "log_interval=1", "pictures=0")


def test_a_word_that_is_none_and_a_package_that_is_not_there_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="vis_backends='wandbb': did you mean 'wandb'"):
        backends("wandbb", tmp_path)
    monkeypatch.setattr("siglip2_dense.engine.loggers.find_spec", lambda name: None)
    for word in ("wandb", "mlflow", "tensorboard"):
        with pytest.raises(UserError, match=f"which is not installed; pip install {word}, or take another"):
            backends(word, tmp_path)
    monkeypatch.undo()
    given = [dict(type="LocalVisBackend", save_dir="here")]
    assert backends(given, tmp_path) == given and backends([], tmp_path) == backends(None, tmp_path) == []


def test_it_is_said_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("siglip2_dense.engine.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        train_verb.main([str(tiny()), "--work-dir", str(tmp_path / "run"), "--logger", "wandb"])
    assert not (tmp_path / "run").exists()


def test_lines_of_json(tiny, tmp_path):
    record = train(tiny(), tmp_path / "run", *SHORT, "vis_backends=json")
    (path,) = (tmp_path / "run").rglob("scalars.json")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    measured = {line["step"]: line["val/mIoU"] for line in lines if "val/mIoU" in line}
    assert measured == {one["step"]: one["metrics"]["mIoU"] for one in record["history"]} and len(measured) == 2


def test_wandb_gets_every_number_with_its_step(tiny, tmp_path, monkeypatch):
    """A module in its place: no account, and whether the package is installed makes no difference."""
    logged, started, ended = [], {}, []
    double = ModuleType("wandb")
    double.init = lambda **settings: started.update(settings)
    double.log = lambda values, step: logged.append((step, dict(values)))
    double.config = SimpleNamespace(update=lambda values: started.update(config=values))
    double.finish = lambda: ended.append(True)
    double.__spec__ = SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", double)
    record = train(tiny(), tmp_path / "my_run", *SHORT, "vis_backends=wandb")
    assert started["project"] == "siglip2_dense" and started["name"] == "my_run" and ended == [True]
    assert started["config"]["train_cfg"]["max_iters"] == 4
    assert [step for step, values in logged if "loss" in values] == [1, 2, 3, 4]
    assert [step for step, _ in logged] == sorted(step for step, _ in logged)  # W&B drops what comes late
    measured = {step: values["val/mIoU"] for step, values in logged if "val/mIoU" in values}
    assert measured == {one["step"]: one["metrics"]["mIoU"] for one in record["history"]}


def test_wandb_itself_offline(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    record = train(tiny(), tmp_path / "run", *SHORT, "vis_backends=wandb")
    (path,) = (tmp_path / "run").rglob("offline-run-*/run-*.wandb")
    found = _of_wandb(path)
    assert [one["_step"] for one in found if "loss" in one] == [1, 2, 3, 4]
    measured = {one["_step"]: one["val/mIoU"] for one in found if "val/mIoU" in one}
    assert measured == pytest.approx({one["step"]: one["metrics"]["mIoU"] for one in record["history"]})


def _of_wandb(path) -> list[dict]:
    """What a file of an offline run holds of its history: protocol buffers in LevelDB's format of logs."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts, found = path.read_bytes(), 7, b"", []  # behind the file's own header
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # what is left of a block is too short for a record
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            record, parts = wandb_internal_pb2.Record.FromString(parts), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return found


def test_mlflow_keeps_runs_of_a_folder_in_one_store(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # mlflow has it, mlflow-skinny has not
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("one", "other"):
        train_verb.main([
            str(tiny()), "--work-dir", str(tmp_path / "runs" / name), "--logger", "mlflow", "--cfg-options", *SHORT,
        ])  # fmt: skip
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("siglip2_dense").experiment_id])
    assert {one.info.run_name for one in found} == {"one", "other"}
    for one in found:
        record = json.loads((tmp_path / "runs" / one.info.run_name / "results.json").read_text())
        history = {
            key: {point.step: point.value for point in client.get_metric_history(one.info.run_id, key)}
            for key in ("loss", "val/mIoU")
        }
        assert one.data.params["model.encoder.name"] == "test_vit" and one.info.status == "FINISHED"
        assert sorted(history["loss"]) == [1, 2, 3, 4]
        assert history["val/mIoU"] == {step["step"]: step["metrics"]["mIoU"] for step in record["history"]}
        assert {file.path for file in client.list_artifacts(one.info.run_id)} == {"config.py", "results.json"}
