"""What a config says, built and checked: data, probe, loaders, and the record of it all."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.runner import set_random_seed
from torch import Tensor, nn

from siglip2_dense import head_file, records
from siglip2_dense.data.loading import test_loader, train_loader
from siglip2_dense.engine import distributed, extract
from siglip2_dense.engine.configs import check_keys, check_trains
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, MODELS, build

HEAD, BEST_HEAD, RESULTS = "head.safetensors", "best_head.safetensors", "results.json"


class Run:
    """What a config says, built: data, probe and loaders. Raises UserError for what does not fit together."""

    def __init__(self, config: Config, command: str = ""):
        check_keys(config)
        check_trains(config)
        distributed.start(config.get("launcher", "none"))
        self.config = config
        self.command = command
        self.seed = config.seed
        self.work_dir = Path(config.work_dir)
        set_random_seed(self.seed)
        self.train_data = build(DATASETS, config.train_dataloader.dataset, seed=self.seed)
        self.val_data = build(DATASETS, config.val_dataloader.dataset, seed=self.seed)
        self.probe = build_probe(config, self.train_data, self.val_data)
        check_targets(self.probe, self.val_data)
        self.val_loader = loader_of(config.val_dataloader, self.val_data, self.probe)
        on_gpus = torch.cuda.is_available() and get_world_size() > 1
        if on_gpus:
            self.probe = nn.SyncBatchNorm.convert_sync_batchnorm(self.probe)
        first, task = next(iter(self.probe.tasks.items()))  # with several heads, the first decides which step was best
        self.headline = task.headline if len(self.probe.tasks) == 1 else f"{first}.{task.headline}"
        self.sign = 1 if task.higher_is_better else -1
        self.heads = describe_heads(config, self.probe)
        self.protocol = records.protocol(
            config.to_dict(), self.heads, records.describe_data(self.train_data), get_world_size(), on_gpus
        )
        if self.probe.facts.sequence_length:  # that of training: a head may be tested at another
            self.protocol["sequence_length"] = self.probe.facts.sequence_length
        if self.probe.clip_norm is not None:  # a model may have one of its own
            self.protocol["clip_norm"] = self.probe.clip_norm
        self.stored = extract.settings(config)
        self.encoder = records.describe_encoder(self.probe, self.stored and self.stored["dtype"])
        self.identity = {
            "protocol": self.protocol,
            "encoder": self.encoder,
            "seed": self.seed,
            "head_seeds": self.probe.seeds,
            "val_data": records.describe_data(self.val_data),
        }

    def train_loader(self):
        """Endless batches of this rank for training, of images or of stored features.

        Features that are missing are extracted first, for training and for evaluation; then the encoder is let go.
        """
        loading = self.config.train_dataloader
        if self.stored is None:
            targets = tuple(task.target for task in self.probe.tasks.values())
            return train_loader(self.train_data, loading.batch_size, loading.get("num_workers", 0), self.seed, targets)
        loader = extract.training_loader(self.config, self.probe, self.train_data)
        self.val_loader = extract.test_images(self.config, self.probe, self.val_data, self.config.val_dataloader)
        self.probe.encoder = None
        return loader

    def save_head(self, name: str, tensors: dict[str, Tensor], step: int, metrics: dict, rates: dict) -> None:
        """tensors: what was trained, whole. rates: the highest learning rate of each head so far."""
        content = head_file.HeadFile(
            tensors=tensors,
            encoder=self.probe.facts,
            encoder_config=self.config.model.encoder.to_dict(),
            heads=self.heads,
            protocol={**self.protocol, "peak_learning_rate": rates},
            metrics=metrics,
            step=step,
            text=head_file.describe_text(self.probe),
            model=head_file.describe_model(self.config.to_dict()),
        )
        head_file.save(self.work_dir / name, content)

    def write_results(self, notes: dict) -> None:
        """The record of the last head, from what training noted on the way."""
        images = self.config.train_cfg.max_iters * self.protocol["optimisation"]["images_per_step"]
        speed = images / max(notes["training_seconds"], 1e-9)
        record = {
            **{key: notes["last"][key] for key in ("metrics", "per_class", "intervals")},
            "oracle": notes["last"].get("oracle", {}),  # a run that is resumed may have been before it
            "best": notes["best"],
            "encoder": self.encoder,
            "protocol": {**self.protocol, "peak_learning_rate": notes["rates"]},
            "data": {**records.describe_data(self.val_data), "images": notes["last"]["images"]},
            "run": records.describe_run(self.probe, self.command, self.seed, notes["seconds"], speed),
            "history": notes["history"],
        }
        records.write(self.work_dir / RESULTS, record)


def build_probe(config: Config, data, scored=None) -> nn.Module:
    """The model of a config; a task that names no classes gets the data set's, a head without a seed the config's.

    scored: data of an evaluation, where they are others: a detector is asked for their classes, whatever the names are
    that it learns. Raises UserError when a task's classes are others, or the data have not what a head learns.
    """
    model = config.model.to_dict()
    known = {"Detection": (scored or data).classes}
    for parts in model.get("heads", {}).values():
        task = parts.get("task", {})
        classes = known.get(task.get("type"), data.classes)
        if classes and task.get("type") in ("Segmentation", "OpenVocabulary", "Detection"):
            task.setdefault("classes", list(classes))
        if parts.get("seed") is None:
            parts["seed"] = config.seed
    probe = build(MODELS, model)
    check_targets(probe, data)
    for name, task in probe.tasks.items():
        classes = known.get(type(task).__name__, data.classes)
        own = getattr(task, "classes", classes)
        if classes and tuple(own) != tuple(classes):
            raise UserError(
                f"heads.{name}: its task has {len(own)} classes ({own[0]} … {own[-1]}), the data {len(classes)} "
                f"({classes[0]} … {classes[-1]}); leave the task's classes out, or give the data's."
            )
    return probe


def check_targets(probe, data) -> None:
    """Raise UserError when a head learns what the data set has not."""
    for name, task in probe.tasks.items():
        if task.target not in data.targets:
            raise UserError(
                f"heads.{name} learns {task.target}, but {data.name} gives {' and '.join(data.targets)}; name data "
                "that have it, or leave the head out."
            )


def describe_heads(config: Config, probe) -> dict:
    """Per head: its config and its task's, what it reads of which encoder's blocks, what it means, how it is scored."""
    configs = config.model.heads.to_dict()
    return {
        name: head_file.describe(probe.heads[name], probe.tasks[name], {**parts, "seed": probe.seeds.get(name)})
        for name, parts in configs.items()
    }


def loader_of(loading: dict, dataset, probe):
    """Loader of a test; of the targets only those that the probe's tasks score travel."""
    targets = tuple(task.target for task in probe.tasks.values())
    return test_loader(dataset, loading.get("batch_size", 1), loading.get("num_workers", 0), targets)
