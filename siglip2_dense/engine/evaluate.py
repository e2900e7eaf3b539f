"""Evaluation: every image once, over all ranks, through the metric of each head's task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from torch.utils.data import DataLoader

from siglip2_dense import head_file, records
from siglip2_dense.contracts import Features, Sample
from siglip2_dense.data.loading import stop_workers
from siglip2_dense.engine import distributed, extract
from siglip2_dense.engine.configs import check_keys
from siglip2_dense.engine.oracle import Oracle
from siglip2_dense.engine.pictures import Pictures
from siglip2_dense.engine.progress import Progress
from siglip2_dense.engine.run import build_probe, describe_heads, loader_of
from siglip2_dense.errors import UserError
from siglip2_dense.metrics import rows
from siglip2_dense.metrics.detection import DetectionAP
from siglip2_dense.registry import DATASETS, MODELS, build, check_arguments
from siglip2_dense.store.loader import StoredImages


@torch.no_grad()
def evaluate(
    probe,
    loader: DataLoader | StoredImages,
    label: str = "evaluating",
    seen: Callable[[Callable[[], torch.Tensor], Sample, dict[str, torch.Tensor]], None] | None = None,
    oracle: Oracle | None = None,
) -> dict:
    """Metrics by head name, summed over the whole set and all ranks.

    seen: called with what gives an image as the encoder got it, its sample and its predictions, for pictures.
    oracle: of the same probe and data; it counts the images too.
    """
    probe.eval()
    metrics = {name: _metric(task, loader.dataset) for name, task in probe.tasks.items()}
    with Progress(label, len(loader.sampler)) as progress:
        for batch in loader:
            batch = probe.data_preprocessor(batch, False)
            predictions = probe(**batch, mode="predict")
            for image, sample, prediction in zip(batch["inputs"], batch["data_samples"], predictions, strict=True):
                for name, task in probe.tasks.items():
                    _count(metrics[name], task, prediction[name], sample)
                if seen is not None:
                    seen(partial(_pixels, image, sample, loader.dataset), sample, prediction)
            if oracle is not None:
                oracle.count(probe.places, batch["data_samples"])
            progress.update(len(predictions))
    for metric in metrics.values():
        metric.sync()
    return metrics


def _metric(task, dataset):
    """A task's metric; detections are scored by the annotations and the rule of their data."""
    return DetectionAP(**dataset.scoring) if task.target == "boxes" else task.metric()


def _count(metric, task, prediction, sample: Sample) -> None:
    if task.target == "boxes":
        metric.update(sample.index, prediction.boxes, prediction.scores, prediction.labels)
        return
    target = _target(sample, task)
    if target.shape[-2:] != prediction.shape[-2:]:
        raise UserError(
            f"{sample.path}: its {task.target} has {tuple(target.shape[-2:])} pixels, not the original "
            f"{sample.original_size}; transforms of a test leave targets as they are (targets=False)."
        )
    metric.update(prediction, target, sample.index)


def _pixels(image: torch.Tensor | Features, sample: Sample, dataset) -> torch.Tensor:
    """The image itself; where its features come from a store, it is read again."""
    return dataset[sample.index].image if isinstance(image, Features) else image


def _target(sample: Sample, task) -> torch.Tensor:
    target = getattr(sample, task.target)
    if target is None:
        raise UserError(f"{sample.path} has no {task.target} to score a prediction by; use data that has.")
    return target


def report(metrics: dict, tasks: dict, oracle: Mapping[str, dict] | None = None) -> dict:
    """What a record and a log say of finished metrics: flat numbers, per class, intervals, the oracle's numbers by the
    same names, images, and a table.

    A single head's numbers go by their own names, those of several as "HEAD.metric". Only metrics of classes have
    numbers per class.
    """
    scores = {name: metric.compute() for name, metric in metrics.items()}
    intervals = _named({name: metric.intervals() for name, metric in metrics.items()})
    per_class, lines = {}, []
    for name, values in scores.items():
        if all(math.isnan(value) for value in values.values()):
            raise UserError(
                f"heads.{name}: nothing in the data could be scored; look at their {tasks[name].target} with "
                "`siglip2-dense data show`: unit, scale, range (min_depth to max_depth), ignored labels or boxes are "
                "wrong."
            )
        lines.append(f"{name}: " + "  ".join(f"{key} {_short(value)}" for key, value in values.items()))
        if ideal := (oracle or {}).get(name):
            headline = tasks[name].headline
            lines.append(
                f"{name}: {headline} {_short(ideal[headline])} with the targets of each cell of its grid (oracle)"
            )
    for name, metric in metrics.items():
        found = metric.per_class()
        if not found:
            continue
        classes = tasks[name].classes
        columns = {key: dict(zip(classes, values, strict=True)) for key, values in found.items()}
        per_class[name] = columns
        width = max(map(len, (name, *classes)))
        lines.append(f"{name:{width}}  " + "  ".join(f"{key:>6}" for key in columns))
        for label in classes:
            numbers = (column[label] for column in columns.values())
            lines.append(f"{label:{width}}  " + "  ".join("     -" if x is None else f"{x:6.2f}" for x in numbers))
    return {
        "metrics": _named(scores),
        "per_class": per_class if len(metrics) > 1 else per_class.get(next(iter(metrics)), {}),
        "intervals": intervals,
        "oracle": _flat(oracle or {}, len(metrics)),
        "images": next(iter(metrics.values())).images,
        "table": "\n".join(lines),
    }


def keep_rows(record: Path, metrics: dict, tasks: dict) -> None:
    """Write what each image adds to finished metrics beside the record that tells of them, for paired comparisons.

    Detections add to ranks over all images, not to sums: they are written as COCO's results files have them.
    """
    for name, metric in metrics.items():
        if isinstance(metric, DetectionAP):
            metric.write(detections_of(record, name if len(metrics) > 1 else None))
    summed = {name: metric for name, metric in metrics.items() if not isinstance(metric, DetectionAP)}
    if summed:
        classes = {name: tasks[name].classes for name in summed if hasattr(tasks[name], "classes")}
        rows.write(rows.place(record), summed, classes)


def detections_of(record: Path, head: str | None = None) -> Path:
    """Where the detections of a record are: results_val.json -> detections_val.json; of one of several heads, with its
    name.
    """
    parts = ("detections", record.stem.removeprefix("results").strip("_"), head)
    return record.with_name("_".join(filter(None, parts)) + ".json")


def _short(value: float) -> str:
    """Two decimals of per cents and degrees, four of metres and fractions."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _named(values: dict[str, dict]) -> dict:
    return _flat(values, len(values))


def _flat(values: Mapping[str, Mapping], heads: int) -> dict:
    """Numbers of a record by their names; of several ``heads`` with the head's before it."""
    return {
        f"{name}.{key}" if heads > 1 else key: value for name, found in values.items() for key, value in found.items()
    }


def test(config: Config, path: str | None, out: str | None = None, command: str = "") -> dict:
    """Evaluate a head file on the config's test data (its validation data where it names no test data).

    path: none for a model that has nothing to train.

    Writes the record to ``out``, by default ``WORK_DIR/results_SPLIT.json``, and returns it.
    """
    check_keys(config)
    distributed.start(config.get("launcher", "none"))
    started = time.time()
    content = read_head(config, path)
    loading = test_loading(config)
    data = build(DATASETS, loading["dataset"], seed=config.seed)
    probe = build_probe(config, data)
    take_head(config, probe, content, path)
    probe = probe.to(get_device())
    record, table = score(config, probe, content, data, loading, data.split, command, started, out)
    if record:
        print(table)
    return record


def test_loading(config: Config) -> dict:
    """Loader of the data that a config is tested on, as plain data."""
    loading = config.get("test_dataloader") or config.get("val_dataloader")
    if not loading or "dataset" not in loading:
        raise UserError("the config names no data to test on: give test_dataloader, or val_dataloader, with a dataset.")
    return loading.to_dict()


def read_head(config: Config, path: str | None) -> head_file.HeadFile | None:
    """The content of a head file, or none where the model has nothing to train."""
    if path and "heads" not in config.model:
        raise UserError(f"{config.model.type} has nothing to train; leave out the head file {path}.")
    return head_file.read(path) if path else None


def take_head(config: Config, probe, content: head_file.HeadFile | None, path: str | None) -> None:
    """Load a head file's content into a built probe. Raises UserError where it does not fit, or there is none."""
    if content is not None:
        head_file.load_into(probe, describe_heads(config, probe), content, path)
    elif any(True for _ in probe.parameters()):
        raise UserError("the config's heads are to be trained: give the head file, siglip2-dense test CONFIG HEAD.")


def open_probe(config: Config, content, path: str | None):
    """A model that takes any class names, to be given some by ``set_vocabulary``, with its head if it has one to load.

    content, path: of a head file, or none. Raises UserError for another kind of model.
    """
    model = config.model.to_dict()
    if not hasattr(check_arguments(MODELS, model), "set_vocabulary"):
        raise UserError(
            f"{model['type']} cannot be asked for other classes than its own; take a model of names, "
            "ZeroShot, CATSeg or OWLViT."
        )
    asked = [parts["task"] for parts in model["heads"].values()] if "heads" in model else [model]
    for settings in asked:  # the texts of the config's own would be computed in vain
        settings.update(classes=["thing"], queries=None)
        settings.pop("background_threshold", None)
    probe = build(MODELS, model)
    take_head(config, probe, content, path)
    return probe.to(get_device()).eval()


def evaluate_data(config: Config, probe, data, loading: dict, *arguments) -> dict:
    """``evaluate`` on a data set, or on its stored features where the config has them."""
    encoder = probe.encoder
    if extract.settings(config) is None:
        loader = loader_of(loading, data, probe)
    else:
        loader = extract.test_images(config, probe, data, loading)
        probe.encoder = None
    try:
        return evaluate(probe, loader, *arguments)
    finally:
        stop_workers(loader)
        probe.encoder = encoder


def score(
    config: Config, probe, content, data, loading: dict, name: str, command: str, started: float, out: str | None = None
) -> tuple[dict, str]:
    """Evaluate a probe on a data set: the record, written to ``out``, and a table for people; nothing on other ranks.

    content: of its head file. name: in the names of what is written, by default ``WORK_DIR/results_NAME.json``.
    started: when the work on it began, seconds since the epoch.
    """
    if content is None:
        protocol, step = records.untrained_protocol(probe), 0
    else:  # trained as the file says, scored as the config says
        protocol, step = records.scored_otherwise(content, describe_heads(config, probe)), content.step
    work_dir = Path(config.work_dir)
    pictures = Pictures(probe.tasks, len(data), work_dir / f"pictures_{name}", config.get("pictures", 0))
    oracle = Oracle(probe, data, loading["dataset"])
    stored = extract.settings(config)
    described = records.describe_encoder(probe, stored and stored["dtype"])
    metrics = evaluate_data(config, probe, data, loading, f"evaluating {name}", pictures, oracle)
    ideal = oracle.finish()
    if not is_main_process():
        return {}, ""
    found = report(metrics, probe.tasks, ideal)
    seconds = time.time() - started
    record = {
        **{key: found[key] for key in ("metrics", "per_class", "intervals", "oracle")},
        "best": None,
        "encoder": described,
        "protocol": {
            **protocol,
            "inference": probe.inference,
            "test_transforms": loading["dataset"].get("transforms", []),
        },
        "data": {**records.describe_data(data), "images": found["images"]},
        "run": records.describe_run(probe, command, config.seed, seconds, found["images"] / seconds),
        "history": [{"step": step, "split": data.split, "metrics": found["metrics"]}],
    }
    out = Path(out or work_dir / f"results_{name}.json")
    keep_rows(out, metrics, probe.tasks)
    records.write(out, record)
    return record, found["table"]
