"""What a config says, built and checked: data, probe, loaders, and the record of it all."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.runner import set_random_seed
from torch import nn

from siglip2_dense import head_file, records
from siglip2_dense.data.loading import test_loader
from siglip2_dense.engine import distributed
from siglip2_dense.errors import UserError, nearest
from siglip2_dense.registry import DATASETS, MODELS, build

HEAD, BEST_HEAD, RESULTS = "head.safetensors", "best_head.safetensors", "results.json"

KEYS = {
    "seed", "work_dir", "launcher", "model", "train_dataloader", "val_dataloader", "test_dataloader",
    "train_cfg", "param_scheduler", "log_interval", "pictures", "vis_backends",
}  # fmt: skip
NEEDED = ("model", "train_dataloader", "val_dataloader", "train_cfg", "work_dir", "seed", "log_interval")
LOADER_KEYS = {"batch_size", "num_workers", "dataset"}
INNER_KEYS = {
    "train_cfg": {"max_iters", "val_interval", "save_interval"},
    "train_dataloader": LOADER_KEYS,
    "val_dataloader": LOADER_KEYS,
    "test_dataloader": LOADER_KEYS,
}


class Run:
    """What a config says, built: data, probe and loaders. Raises UserError for what does not fit together."""

    def __init__(self, config: Config, command: str = ""):
        check_keys(config)
        distributed.start(config.get("launcher", "none"))
        self.config = config
        self.command = command
        self.seed = config.seed
        self.work_dir = Path(config.work_dir)
        set_random_seed(self.seed)
        self.train_data = build(DATASETS, config.train_dataloader.dataset, seed=self.seed)
        self.val_data = build(DATASETS, config.val_dataloader.dataset, seed=self.seed)
        self.probe = build_probe(config, self.train_data.classes)
        on_gpus = torch.cuda.is_available() and get_world_size() > 1
        if on_gpus:
            self.probe = nn.SyncBatchNorm.convert_sync_batchnorm(self.probe)
        task = next(iter(self.probe.tasks.values()))
        first = next(iter(self.probe.tasks))
        self.headline = task.headline if len(self.probe.tasks) == 1 else f"{first}.{task.headline}"
        self.val_loader = loader_of(config.val_dataloader, self.val_data)
        plain = config.to_dict()
        data = records.describe_data(self.train_data)
        self.protocol = records.protocol(plain, data, get_world_size(), on_gpus)
        self.encoder = records.describe_encoder(
            self.probe.facts, self.probe.taps, self.probe.pooled, self.probe.encoder.precision
        )
        self.identity = {"protocol": self.protocol, "encoder": self.encoder, "seed": self.seed}

    def save_head(self, name: str, step: int, metrics: dict) -> None:
        content = head_file.HeadFile(
            tensors=self.probe.heads.state_dict(),
            encoder=self.probe.facts,
            encoder_config=self.config.model.encoder.to_dict(),
            heads=head_configs(self.config, self.probe),
            protocol=self.protocol,
            metrics=metrics,
            step=step,
        )
        head_file.save(self.work_dir / name, content)

    def write_results(self, notes: dict) -> None:
        steps, seconds = self.config.train_cfg.max_iters, notes["seconds"]
        images = steps * self.protocol["optimisation"]["images_per_step"]
        protocol = {**self.protocol, "peak_learning_rate": notes["lr"]}
        record = {
            **{key: notes["last"][key] for key in ("metrics", "per_class", "intervals")},
            "best": notes["best"],
            "encoder": self.encoder,
            "protocol": protocol,
            "data": {**records.describe_data(self.val_data), "images": notes["last"]["images"]},
            "run": records.describe_run(self.command, self.seed, seconds, images / max(seconds, 1e-9)),
            "history": notes["history"],
        }
        records.write(self.work_dir / RESULTS, record)


def build_probe(config: Config, classes: tuple[str, ...]) -> nn.Module:
    """The model of a config; a task that names no classes gets the data set's. Raises UserError when they differ."""
    model = config.model.to_dict()
    for parts in model.get("heads", {}).values():
        task = parts.get("task", {})
        if classes and task.get("type") == "Segmentation":
            task.setdefault("classes", list(classes))
    probe = build(MODELS, model)
    for name, task in probe.tasks.items():
        own = getattr(task, "classes", classes)
        if classes and tuple(own) != tuple(classes):
            raise UserError(
                f"heads.{name}: its task has {len(own)} classes ({own[0]} … {own[-1]}), the data {len(classes)} "
                f"({classes[0]} … {classes[-1]}); leave the task's classes out, or give the data's."
            )
    return probe


def head_configs(config: Config, probe) -> dict:
    """Per head its config and its task's, the classes spelled out."""
    found = {}
    for name, parts in config.model.heads.to_dict().items():
        task = dict(parts["task"])
        if hasattr(probe.tasks[name], "classes"):
            task["classes"] = list(probe.tasks[name].classes)
        found[name] = {"head": parts["head"], "task": task}
    return found


def check_keys(config: Config) -> None:
    """Raise UserError for a key that nothing reads, or a needed one that is missing."""
    for key in config:
        if key not in KEYS:
            raise UserError(f"the config has an unknown key {key!r}: {nearest(key, KEYS, ', '.join(sorted(KEYS)))}")
    for key in NEEDED:
        if config.get(key) is None:
            raise UserError(f"the config does not set {key!r}; the files in configs/_base_/ show how.")
    for key, known in INNER_KEYS.items():
        for inner in config.get(key) or {}:
            if inner not in known:
                raise UserError(f"{key} has no setting {inner!r}: {nearest(inner, known, ', '.join(sorted(known)))}")


def loader_of(loading: dict, dataset):
    return test_loader(dataset, loading.get("batch_size", 1), loading.get("num_workers", 0))
