"""Where curves go by one word. MLflow and W&B run where they are installed; else a module that records the calls."""

import json
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
    """What a file of an offline run holds of its history."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            found.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                          for item in record.history.item} | {"_step": record.history.step.num})  # fmt: skip
    return found


def test_mlflow_keeps_runs_of_a_folder_in_one_store(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("one", "other"):
        train_verb.main([
            str(tiny()), "--work-dir", str(tmp_path / "runs" / name), "--logger", "mlflow", "--cfg-options", *SHORT,
        ])  # fmt: skip
    client = mlflow.MlflowClient((tmp_path / "runs" / "mlruns").as_uri())
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
