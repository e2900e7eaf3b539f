"""Many settings in one pass: heads of all settings and seeds train together, one is chosen for each head of the config.

The choice is made on images held out from the training set; the validation set is read only after it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, broadcast_object_list, is_main_process
from mmengine.hooks import RuntimeInfoHook

from siglip2_dense import records
from siglip2_dense.data.loading import stop_workers
from siglip2_dense.engine import extract
from siglip2_dense.engine.configs import check_keys, check_trains
from siglip2_dense.engine.evaluate import evaluate, keep_rows, report
from siglip2_dense.engine.grid import VARIES, Member, axes_of, holdout, members, seeds_of
from siglip2_dense.engine.pictures import Pictures
from siglip2_dense.engine.run import HEAD, RESULTS, Run, check_targets, loader_of
from siglip2_dense.engine.train import KeepHeads, prepare, train
from siglip2_dense.errors import UserError
from siglip2_dense.registry import DATASETS, build
from siglip2_dense.viz.curves import curves
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
    """A head whose loss or weights are not finite any more is noted and not scored; the others go on."""

    says = dict(type=MeanLoss)

    def __init__(self, run: Run, resume: bool):
        super().__init__(run, resume)
        self.notes |= {"diverged": {}, "scores": {}}  # by head: the step it was seen at; its last scores

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losers = [name.partition(".")[0] for name in outputs]
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

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

    def _note(self, runner, step: int, metrics: dict) -> None:
        metrics = _without(metrics, self.notes["diverged"])
        self.notes["scores"] = {name: metric.compute() for name, metric in metrics.items()}
        super()._note(runner, step, metrics)

    def _told(self, found: dict) -> str:
        return f"{len(self.notes['scores'])} heads scored on {self.run.val_data.split}"

    def _keep_best(self, measured: dict) -> None:
        """There is none before the choice."""


def sweep(config: Config, command: str = "", resume: bool = False) -> None:
    """Train, choose, evaluate and export what a config with ``sweep`` or ``seeds`` asks for.

    In the work dir: the chosen heads and their record as of any run, ``sweep.json``, ``sweep.png``, and the config of
    the chosen heads alone. The spread over seeds is that of what a head draws itself, ``VARIES``. ``resume``: as in
    ``train``.
    """
    check_keys(config)
    check_trains(config)
    _check_sweep(config)
    heads, work_dir = members(config), Path(config.work_dir)
    prepare(work_dir, resume)
    run = Run(_config_of_all(config, heads), command)
    tasks = {member.head: run.probe.tasks[member.name] for member in heads}
    validation = build(DATASETS, config.val_dataloader.dataset, seed=config.seed)
    check_targets(run.probe, validation)
    if run.stored is None:
        images = loader_of(config.val_dataloader, validation, run.probe)
    else:  # extracted while there is an encoder
        images = extract.test_images(run.config, run.probe, validation, config.val_dataloader)
    notes = [train(run, resume, KeepMembers, shown=config)]
    broadcast_object_list(notes)  # the first process alone has all scores
    (notes,) = notes
    chosen = choose(config, heads, notes, tasks)
    pictures = Pictures(tasks, len(validation), work_dir / "pictures", config.get("pictures", 0))
    try:
        metrics = evaluate(
            run.probe,
            images,
            f"evaluating {validation.split}",
            lambda image, sample, found: pictures(image, sample, {m.head: found[m.name] for m in chosen}),
        )
    finally:
        stop_workers(images)
    if not is_main_process():
        return
    metrics = _without(metrics, notes["diverged"])
    summary = _summary(config, run, heads, notes, chosen, metrics, validation)
    tensors = {
        f"{member.head}.{key.removeprefix(f'{member.name}.')}": tensor
        for member in chosen
        for key, tensor in run.probe.trained_state().items()
        if key.startswith(f"{member.name}.")
    }
    del run  # and with it the encoder, before there is another
    _export(config, command, chosen, notes, metrics, tensors, summary["selection"])
    records.write(work_dir / SUMMARY, summary)
    save_picture(work_dir / PLOT, _plot(summary))
    print(table(summary))
    print(f"{work_dir / HEAD} holds the chosen; python tools/test.py {work_dir / CHOSEN} {work_dir / HEAD}")


def choose(config: Config, heads: Sequence[Member], notes: Mapping, tasks: Mapping) -> list[Member]:
    """For each head of the config the best seed of the setting with the best mean over its seeds, by the headline of
    its task on the held-out images; without a sweep, the first seed.

    A setting of which a seed has diverged is not chosen. tasks: by the names of the config's heads. Raises UserError
    when that leaves none.
    """
    found, lost = [], notes["diverged"]
    for name, task in tasks.items():
        own = [member for member in heads if member.head == name]

        def score(*seeds: Member, task=task) -> float:
            mean = statistics.fmean(notes["scores"][member.name][task.headline] for member in seeds)
            return mean if task.higher_is_better else -mean

        if holdout(config) is None:
            best = [member for member in own if member.name not in lost]
        else:
            whole = [seeds for seeds in _by_setting(own).values() if not lost.keys() & {one.name for one in seeds}]
            best = sorted(max(whole, key=lambda seeds: score(*seeds), default=[]), key=score, reverse=True)
        if not best:
            raise UserError(f"heads.{name}: a seed of every setting has diverged; give lower learning rates.")
        found.append(best[0])
    return found


def table(summary: dict) -> str:
    """What has come out, for people: a line for each setting, and which split chose."""
    selection, validation = summary["selection"], summary["validation"]["split"]
    split = f"{selection['split']} ({selection['images']} images)" if selection else None
    lines = [f"chosen on {split}, marked *; {validation} was read afterwards" if split else "one setting, all seeds"]
    rows = [("", "setting", "metric", *([selection["split"]] if selection else []), validation)]
    chosen = {(one["head"], one["setting"]) for one in summary["chosen"].values()}
    for one in summary["settings"]:
        metric = one["metric"]
        cells = [_cell(one[key], metric) for key in (["holdout"] if selection else []) + ["validation"]]
        mark = "*" if selection and (one["head"], one["setting"]) in chosen else ""
        rows.append((mark, f"{one['head']}/{one['setting']}".rstrip("/"), metric, *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if summary["seeds"]["count"] > 1:
        lines.append(f"± over {summary['seeds']['count']} seeds of {VARIES}; runs of their own vary these too")
    return "\n".join(lines)


def _cell(scores: dict | None, metric: str) -> str:
    if scores is None:
        return "diverged"
    mean, std = scores[metric]["mean"], scores[metric]["std"]
    return f"{mean:.4g}" + ("" if std is None else f" ± {std:.2g}")


def _check_sweep(config: Config) -> None:
    trainable = config.model.get("encoder", {}).get("trainable", "none")
    if trainable != "none":
        raise UserError(f"sweep: heads share an encoder that stays as it is; trainable={trainable!r} would change it.")
    for schedule in config.get("param_scheduler") or ():
        if "eta_max" in schedule and any("lr" in axes for axes in axes_of(config).values()):
            raise UserError(
                f"sweep.lr: {schedule['type']} in param_scheduler takes every learning rate to eta_max; leave eta_max "
                "out, and each rises to its own."
            )


def _config_of_all(config: Config, heads: Sequence[Member]) -> Config:
    """The config of the run that trains all heads, and scores them on the held-out images if there is a choice."""
    inner = _config_of(config, {member.name: member.parts for member in heads})
    if holdout(config) is not None:  # images of training, looked at as in validation
        inner["val_dataloader"]["dataset"] = _part(config, "held out", of="val_dataloader")
    return Config({**inner, "work_dir": str(Path(config.work_dir) / ALL_HEADS), "pictures": 0})


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


def _without(metrics: Mapping, names: Mapping) -> dict:
    return {name: metric for name, metric in metrics.items() if name not in names}


def _by_setting(heads: Sequence[Member]) -> dict[tuple[str, str], list[Member]]:
    found: dict[tuple[str, str], list[Member]] = {}
    for member in heads:
        found.setdefault((member.head, member.setting), []).append(member)
    return found


def _summary(config: Config, run: Run, heads, notes: dict, chosen, metrics: dict, validation) -> dict:
    """The content of ``sweep.json``."""
    scores = {name: metric.compute() for name, metric in metrics.items()}
    selects = holdout(config) is not None
    found = []
    for (head, setting), own in _by_setting(heads).items():
        names = {member.seed: member.name for member in own}
        diverged = {seed: notes["diverged"][name] for seed, name in names.items() if name in notes["diverged"]}
        found.append({
            "head": head,
            "setting": setting,
            "metric": run.probe.tasks[own[0].name].headline,
            "values": own[0].values,
            "lr": own[0].parts["optim"].get("lr", notes["rates"][own[0].name]),
            "seeds": list(names),
            "diverged": diverged,  # seed: the step it was seen at
            "holdout": _over_seeds(notes["scores"], names) if selects and not diverged else None,
            "validation": None if diverged else _over_seeds(scores, names),
        })  # fmt: skip
    selection = {
        **records.describe_data(run.val_data),
        "holdout": holdout(config),
        "grid": axes_of(config),
        "settings": len({member.setting for member in heads}),
        "seeds": len(seeds_of(config)),
        "held_out": "runs of neighbours in the order of the set",
        "rule": "the best mean of the metric over seeds, and of that setting the best seed",
    }
    return {
        "selection": selection if selects else None,
        "chosen": {
            member.head: {
                "head": member.head,
                "setting": member.setting,
                "seed": member.seed,
                "holdout": notes["scores"][member.name] if selects else None,
                "validation": scores[member.name],
            }
            for member in chosen
        },
        "validation": {
            **records.describe_data(validation),
            "note": "read after the choice: to choose a setting by these numbers is to choose it on this split",
        },
        "seeds": {"count": len(seeds_of(config)), "vary": VARIES},
        "settings": found,
        "encoder": run.encoder,
        "run": {"seed": config.seed, "command": run.command, "seconds": round(notes["seconds"], 2)},
    }


def _over_seeds(scores: Mapping, names: Mapping[int, str]) -> dict:
    """Per metric: mean, standard deviation (none of one seed) and the values themselves, in the order of the seeds."""
    found = {}
    for metric in scores[next(iter(names.values()))]:
        values = [scores[name][metric] for name in names.values()]
        std = statistics.stdev(values) if len(values) > 1 else None
        found[metric] = {"mean": statistics.fmean(values), "std": std, "values": values}
    return found


def _export(config: Config, command: str, chosen, notes: dict, metrics: dict, tensors: dict, selection) -> None:
    """The chosen heads under their plain names: head file, record, rows of the images, and a config of theirs."""
    plain = Config(_config_of(config, {member.head: member.parts for member in chosen}))
    run = Run(plain, command)
    run.probe.load_trained(tensors)
    run.protocol["selection"] = selection
    own = {member.head: metrics[member.name] for member in chosen}
    rates = {member.head: notes["rates"][member.name] for member in chosen}
    step, found = config.train_cfg.max_iters, report(own, run.probe.tasks)
    run.save_head(HEAD, step, found["metrics"], rates)
    keep_rows(run.work_dir / RESULTS, own, run.probe.tasks)
    measured = {"metrics": found["metrics"], "step": step, "split": run.val_data.split}
    run.write_results({**notes, "last": found, "best": None, "rates": rates, "history": [measured]})
    for key in ("work_dir", "launcher"):  # they are this run's
        plain.pop(key, None)
    plain.dump(run.work_dir / CHOSEN)


def _plot(summary: dict) -> np.ndarray:
    """The headline metric against the learning rate, a line for each other setting, a panel for each head."""
    split = "holdout" if summary["selection"] else "validation"
    shown = (summary["selection"] or summary["validation"])["split"]
    panels, labels = {}, {}
    for one in summary["settings"]:
        labels[one["head"]] = f"{one['metric']}, {shown}"
        others = ",".join(word for word in one["setting"].split(",") if not word.startswith("lr="))
        points = panels.setdefault(one["head"], {}).setdefault(others, [])
        if one[split] is not None:
            score = one[split][one["metric"]]
            points.append((one["lr"], score["mean"], score["std"]))
    return curves(panels, "learning rate", list(labels.values()))
