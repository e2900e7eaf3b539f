"""Many settings in one pass: heads of all settings and seeds train together, one is chosen for each head of the config.

The choice is made on images held out from the training set; the validation set is read only after it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import RuntimeInfoHook

from siglip2_dense import records
from siglip2_dense.data.loading import stop_workers
from siglip2_dense.engine import extract
from siglip2_dense.engine.configs import check_keys, check_trains
from siglip2_dense.engine.evaluate import evaluate
from siglip2_dense.engine.grid import Member, axes_of, by_setting, holdout, members
from siglip2_dense.engine.oracle import Oracle
from siglip2_dense.engine.pictures import Pictures
from siglip2_dense.engine.run import HEAD, Run, check_targets, loader_of
from siglip2_dense.engine.sweep_report import Outcome, export, plot, summarise, table
from siglip2_dense.engine.train import KeepHeads, prepare, share_buffers, train
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build
from siglip2_dense.viz.panels import save_picture

ALL_HEADS = "all_heads"  # the folder, in the work dir, of the run that trains them
SUMMARY, PLOT, CHOSEN = "sweep.json", "sweep.png", "chosen.py"


class MeanLoss(RuntimeInfoHook):
    """Tells the log one loss instead of a hundred losses and learning rates: mmengine copies every number it was told
    at every step.
    """

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.message_hub.update_info("iter", runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        losses = torch.stack([value.detach() for key, value in outputs.items() if key != "loss"])
        super().after_train_iter(runner, batch_idx, data_batch, {"loss": losses[losses.isfinite()].mean()})


class KeepMembers(KeepHeads):
    """A head whose loss or weights are not finite any more is noted, and the others go on. None is scored before all
    have been trained: nothing would be decided by it.
    """

    says = dict(type=MeanLoss)

    def __init__(self, run: Run, resume: bool):
        super().__init__(run, resume)
        self.notes |= {"diverged": {}}  # by head: the step it was seen at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losers = [name.partition(".")[0] for name in outputs]
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train(self, runner):
        share_buffers(self.run.probe)

    def _stop_if_spoilt(self, step: int) -> None:
        heads, diverged = self.run.probe.heads, self.notes["diverged"]
        whole = [torch.stack([p.isfinite().all() for p in head.parameters()]).all() for head in heads.values()]
        spoilt = torch.cat([self.spoilt, ~torch.stack(whole)]).int()
        all_reduce(spoilt, "max")
        for name, bad in zip([*self.losers, *heads], spoilt.tolist(), strict=True):
            if bad and name in heads:
                diverged.setdefault(name, step)
        if len(diverged) == len(heads):
            raise UserError(f"no loss of the sweep was a finite number by step {step}; give lower learning rates.")

    def _evaluate(self, runner, step: int, tensors: dict) -> None:
        pass


def sweep(config: Config, command: str = "", resume: bool = False) -> None:
    """Train, choose, evaluate and export what a config with ``sweep`` or ``seeds`` asks for.

    In the work dir: the chosen heads and their record as of any run, ``sweep.json``, ``sweep.png``, and the config of
    the chosen heads alone. The spread over seeds is that of what a head draws itself, ``grid.VARIES``. ``resume``: as
    in ``train``.
    """
    check_keys(config)
    check_trains(config)
    heads, work_dir = members(config), Path(config.work_dir)
    _check_sweep(config)
    prepare(work_dir, resume)
    run = Run(config_of_all(config, heads), command)
    tasks = {member.head: run.probe.tasks[member.name] for member in heads}
    validation = build(DATASETS, config.val_dataloader.dataset, seed=config.seed)
    check_targets(run.probe, validation)
    if run.stored is None:
        images = loader_of(config.val_dataloader, validation, run.probe)
    else:  # extracted while there is an encoder
        images = extract.test_images(run.config, run.probe, validation, config.val_dataloader)
    notes = train(run, resume, KeepMembers, shown=config)
    lost, held = notes["diverged"], {}
    if holdout(config) is not None:
        held = _metrics(run.probe, run.val_loader, run.val_data.split, lost)
    scores = {name: metric.compute() for name, metric in held.items()}
    chosen = choose(heads, tasks, scores, lost)
    pictures = Pictures(tasks, len(validation), work_dir / "pictures", config.get("pictures", 0))

    def draw(image, sample, found):
        pictures(image, sample, {member.head: found[member.name] for member in chosen})

    oracle = Oracle(run.probe, validation, config.val_dataloader.dataset.to_dict())
    tested = _metrics(run.probe, images, validation.split, lost, draw, oracle)
    ideal = oracle.finish()
    if not is_main_process():
        return
    outcome = Outcome(heads, chosen, notes, held, tested, ideal)
    summary = summarise(config, run, validation, outcome)
    export(run, work_dir, validation, outcome, summary["selection"])
    plain = Config(_config_of(config, {member.head: member.parts for member in chosen}))
    for key in ("work_dir", "launcher"):  # they are this run's
        plain.pop(key, None)
    plain.dump(work_dir / CHOSEN)
    records.write(work_dir / SUMMARY, summary)
    save_picture(work_dir / PLOT, plot(summary))
    print(table(summary))
    print(f"{work_dir / HEAD} holds the chosen; siglip2-dense test {work_dir / CHOSEN} {work_dir / HEAD}")


def choose(heads: Sequence[Member], tasks: Mapping, scores: Mapping[str, Mapping], lost: Mapping) -> list[Member]:
    """For each head of the config the best seed of the setting with the best mean over its seeds, by the headline of
    its task; without scores, the first seed.

    tasks: by the names of the config's heads. scores: of members on the held-out images. lost: the members that have
    diverged; a setting with one of them is not chosen. Raises UserError when that leaves none.
    """
    found = []
    for name, task in tasks.items():
        own = [member for member in heads if member.head == name]

        def score(*seeds: Member, task=task) -> float:
            mean = statistics.fmean(scores[member.name][task.headline] for member in seeds)
            return mean if task.higher_is_better else -mean

        if not scores:
            best = [member for member in own if member.name not in lost]
        else:
            whole = [seeds for seeds in by_setting(own).values() if not lost.keys() & {one.name for one in seeds}]
            best = sorted(max(whole, key=lambda seeds: score(*seeds), default=[]), key=score, reverse=True)
        if not best:
            raise UserError(f"heads.{name}: a seed of every setting has diverged; give lower learning rates.")
        found.append(best[0])
    return found


def config_of_all(config: Config, heads: Sequence[Member]) -> Config:
    """The config of the run that trains all heads, and scores them on the held-out images if there is a choice."""
    inner = _config_of(config, {member.name: member.parts for member in heads})
    if holdout(config) is not None:  # images of training, looked at as in validation
        inner["val_dataloader"]["dataset"] = _part(config, "held out", of="val_dataloader")
    return Config({**inner, "work_dir": str(Path(config.work_dir) / ALL_HEADS)})


def _config_of(config: Config, heads: dict[str, dict]) -> dict:
    """The config with these heads, trained on what is not held out."""
    found = {key: value for key, value in config.to_dict().items() if key not in ("sweep", "seeds")}
    found["model"]["heads"] = heads
    if holdout(config) is not None:
        found["train_dataloader"]["dataset"] = _part(config, "kept", of="train_dataloader")
    return found


def _part(config: Config, part: str, of: str) -> dict:
    """A part of the training images, with the transforms of that loader."""
    whole, transforms = config.train_dataloader.dataset.to_dict(), config[of].dataset.to_dict().get("transforms", [])
    whole.pop("transforms", None)
    return dict(type="Subset", dataset=whole, part=part, holdout=holdout(config), transforms=transforms)


def _check_sweep(config: Config) -> None:
    for tower in ("encoder", "text"):
        trainable = (config.model.get(tower) or {}).get("trainable", "none")
        if trainable != "none":
            raise UserError(
                f"sweep: heads share towers that stay as they are; model.{tower}.trainable={trainable!r} would change "
                "that."
            )
    if (clip := config.model.get("clip_norm")) is not None:
        raise UserError(
            f"sweep: model.clip_norm={clip} would bound the gradients of all settings together; give each head's own, "
            "model.heads.NAME.optim.clip_norm."
        )
    for schedule in config.get("param_scheduler") or ():
        if "eta_max" in schedule and any("lr" in axes for axes in axes_of(config).values()):
            raise UserError(
                f"sweep.lr: {schedule['type']} in param_scheduler takes every learning rate to eta_max; leave eta_max "
                "out, and each rises to its own."
            )


def _metrics(
    probe, images, split: str, lost: Mapping, seen: Callable | None = None, oracle: Oracle | None = None
) -> dict:
    """Of every member that has not diverged."""
    try:
        found = evaluate(probe, images, f"evaluating {split}", seen, oracle)
    finally:
        stop_workers(images)
    return {name: metric for name, metric in found.items() if name not in lost}
