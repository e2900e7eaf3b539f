"""What a sweep leaves: the chosen heads as those of any run, and every setting's scores as data, table and curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config

from siglip2_dense import head_file, records
from siglip2_dense.engine.evaluate import keep_rows, report
from siglip2_dense.engine.grid import VARIES, Member, axes_of, by_setting, holdout, seeds_of
from siglip2_dense.engine.run import HEAD, RESULTS, Run
from siglip2_dense.metrics.paired import paired
from siglip2_dense.metrics.per_image import PerImage
from siglip2_dense.viz.curves import curves


class Outcome(NamedTuple):
    """What came of training, choosing and testing; by the names of members, without those that have diverged."""

    heads: list[Member]
    chosen: list[Member]  # one for each head of the config
    notes: dict  # of training: diverged, rates, seconds
    held: dict[str, PerImage]  # of the held-out images; none without a choice
    tested: dict[str, PerImage]  # of the validation images
    oracle: dict[str, dict[str, float]]  # what ``Oracle`` has of them


def summarise(config: Config, run: Run, validation, outcome: Outcome) -> dict:
    """The content of ``sweep.json``."""
    held, tested = (
        {name: metric.compute() for name, metric in side.items()} for side in (outcome.held, outcome.tested)
    )
    diverged, rates = outcome.notes["diverged"], outcome.notes["rates"]
    against = _against_chosen(outcome)
    found = []
    for (head, setting), own in by_setting(outcome.heads).items():
        names = {member.seed: member.name for member in own}
        lost = {seed: diverged[name] for seed, name in names.items() if name in diverged}
        found.append({
            "head": head,
            "setting": setting,
            "metric": run.probe.tasks[own[0].name].headline,
            "values": own[0].values,
            "lr": own[0].parts["optim"].get("lr", rates[own[0].name]),
            "seeds": list(names),
            "diverged": lost,  # seed: the step it was seen at
            "holdout": _over_seeds(held, names) if held and not lost else None,
            "validation": None if lost else _over_seeds(tested, names),
            "against_chosen": against.get((head, setting)),
        })  # fmt: skip
    selection = {
        **records.describe_data(run.val_data),
        "holdout": holdout(config),
        "grid": axes_of(config),
        "settings": len({member.setting for member in outcome.heads}),
        "seeds": len(seeds_of(config)),
        "held_out": "runs of neighbours in the order of the set",
        "rule": "the best mean of the metric over seeds, and of that setting the best seed",
    }
    return {
        "selection": selection if held else None,
        "chosen": {
            member.head: {
                "head": member.head,
                "setting": member.setting,
                "seed": member.seed,
                "holdout": held.get(member.name),
                "validation": tested[member.name],
            }
            for member in outcome.chosen
        },
        "validation": {
            **records.describe_data(validation),
            "note": "read after the choice: to choose a setting by these numbers is to choose it on this split",
            "against_chosen": "means over seeds less that of the chosen setting, with 95 % intervals over drawings of "
            "these images that both share",
        },
        "seeds": {"count": len(seeds_of(config)), "vary": VARIES},
        "settings": found,
        "encoder": run.encoder,
        "run": {"seed": run.seed, "command": run.command, "seconds": round(outcome.notes["seconds"], 2)},
    }


def _over_seeds(scores: Mapping, names: Mapping[int, str]) -> dict:
    """Per metric: mean, standard deviation (none of one seed) and the values themselves, in the order of the seeds."""
    found = {}
    for metric in scores[next(iter(names.values()))]:
        values = [scores[name][metric] for name in names.values()]
        std = statistics.stdev(values) if len(values) > 1 else None
        found[metric] = {"mean": statistics.fmean(values), "std": std, "values": values}
    return found


def _against_chosen(outcome: Outcome) -> dict[tuple[str, str], dict]:
    """Of each setting but the chosen of its head, per score: the difference to that and its interval."""
    found = {}
    for member in outcome.chosen:
        whole = {
            key: [outcome.tested[one.name] for one in own]
            for key, own in by_setting(outcome.heads).items()
            if key[0] == member.head and all(one.name in outcome.tested for one in own)
        }
        chosen = whole.pop((member.head, member.setting), None)
        if not whole or chosen is None or not all(isinstance(metric, PerImage) for metric in chosen):
            continue  # detections have no rows to draw from
        for score, values in paired([chosen, *whole.values()], blocks=1).items():
            for key, other in zip(whole, values["others"], strict=True):
                kept = {name: other[name] for name in ("difference", "interval", "excludes_0")}
                found.setdefault(key, {})[score] = kept
    return found


def export(run: Run, work_dir: Path, validation, outcome: Outcome, selection: dict | None) -> None:
    """The chosen heads under their plain names: head file, record, and rows of the images."""
    names = {member.head: member.name for member in outcome.chosen}
    heads, tasks, metrics, rates = (
        {head: side[name] for head, name in names.items()}
        for side in (run.heads, run.probe.tasks, outcome.tested, outcome.notes["rates"])
    )
    parts = {head: run.probe.heads[name] for head, name in names.items()}
    tensors = {f"{head}.{key}": tensor for head, part in parts.items() for key, tensor in part.state_dict().items()}
    protocol = {
        **run.protocol,
        "heads": records.of_protocol(heads),
        "peak_learning_rate": rates,
        "selection": selection,
    }
    ideal = {head: outcome.oracle[name] for head, name in names.items() if name in outcome.oracle}
    found, step, facts = report(metrics, tasks, ideal), run.config.train_cfg.max_iters, run.probe.facts
    config = run.config.to_dict()
    content = head_file.HeadFile(
        tensors, facts, config["model"]["encoder"], heads, protocol, found["metrics"], step,
        model=head_file.describe_model(config),
    )  # fmt: skip
    head_file.save(work_dir / HEAD, content)
    keep_rows(work_dir / RESULTS, metrics, tasks)
    speed = step * protocol["optimisation"]["images_per_step"] / max(outcome.notes["training_seconds"], 1e-9)
    trained = {
        **records.describe_run(run.probe, run.command, run.seed, outcome.notes["seconds"], speed),
        "head_parameters": sum(p.numel() for part in parts.values() for p in part.parameters()),
        "head_seeds": {member.head: member.seed for member in outcome.chosen},
    }
    record = {
        **{key: found[key] for key in ("metrics", "per_class", "intervals", "oracle")},
        "best": None,
        "encoder": {**run.encoder, **records.read_by(heads, facts)},
        "protocol": protocol,
        "data": {**records.describe_data(validation), "images": found["images"]},
        "run": trained,
        "history": [{"metrics": found["metrics"], "step": step, "split": validation.split}],
    }
    records.write(work_dir / RESULTS, record)


def table(summary: dict) -> str:
    """What has come out, for people: a line for each setting, and which split chose."""
    selection, validation = summary["selection"], summary["validation"]["split"]
    if selection:
        split = f"{selection['split']} ({selection['images']} images)"
        lines = [f"chosen on {split}, marked *; {validation} was read afterwards"]
        rows = [("", "setting", "metric", selection["split"], validation, "less the chosen, 95 % over images")]
    else:
        lines, rows = ["one setting, all seeds"], [("", "setting", "metric", validation)]
    chosen = {(one["head"], one["setting"]) for one in summary["chosen"].values()}
    for one in summary["settings"]:
        metric, name = one["metric"], f"{one['head']}/{one['setting']}".rstrip("/")
        if selection:
            mark = "*" if (one["head"], one["setting"]) in chosen else ""
            cells = [_cell(one["holdout"], metric), _cell(one["validation"], metric), _less(one, metric)]
            rows.append((mark, name, metric, *cells))
        else:
            rows.append(("", name, metric, _cell(one["validation"], metric)))
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


def _less(one: dict, metric: str) -> str:
    if one["against_chosen"] is None:
        return ""
    found = one["against_chosen"][metric]
    digits = 2 if abs(one["validation"][metric]["mean"]) >= 10 else 4  # per cents and degrees, or metres and parts
    low, high = found["interval"]
    return f"{found['difference']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def plot(summary: dict) -> np.ndarray:
    """The headline metric against the learning rate, a line for each other setting, a panel for each head."""
    panels, labels = panels_of(summary)
    return curves(panels, "learning rate", labels)


def panels_of(summary: dict) -> tuple[dict[str, dict[str, list]], list[str]]:
    """{head: {other settings: [(learning rate, mean, deviation)]}}, and of each head the score that this is."""
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
    return panels, list(labels.values())
