"""Names that were not trained with: CAT-Seg on generated scenes, with towers that begin at random.

``configs/catseg_demo.py`` says which names these are. "unseen" has the ten alone, on their own pixels, where the colour
tells them apart. "exchanged" asks for each by the name of another: what is left then is not due to the names. In
"together" all 33 compete, so that the kind counts too, and names stand beside that were trained. "Untrained" is the
same model before its first step. Guesses from the labels that are scored know more than any model may.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import mean

from mmengine.config import Config

from siglip2_dense.benchmark.guesses import class_counts, guesses
from siglip2_dense.benchmark.measure import figure, shrink, verb
from siglip2_dense.engine.configs import find_config
from siglip2_dense.registry import DATASETS, build

CONFIG = "catseg_demo"
SCORE = "mIoU_labelled"
UNTRAINED = ["train_cfg.max_iters=1", "train_cfg.val_interval=1", "model.heads.segmentation.optim.lr=0.0"]
FEW = 12  # scenes of --quick


def run(quick: bool, folder: Path | None = None) -> list[dict]:
    """Figures: mIoU with names that were trained and others, of guesses, of the untrained and the trained model.

    folder: where pictures of some validation scenes are left.
    """
    config = Config.fromfile(find_config(CONFIG))
    options = []
    if quick:
        options = ["train_cfg.max_iters=3", "train_cfg.val_interval=3"]
        shortened = ["train_dataloader", "val_dataloader", *(f"benchmarks.{name}" for name in config.benchmarks)]
        options += [f"{where}.dataset.length={FEW}" for where in shortened]
        config.merge_from_dict({key: int(value) for key, _, value in (option.partition("=") for option in options)})
    sets = {"trained names": config.val_dataloader.dataset}
    sets |= {name: config.benchmarks[name].dataset for name in ("unseen", "together")}
    data = {name: build(DATASETS, settings) for name, settings in sets.items()}
    known = class_counts(build(DATASETS, config.train_dataloader.dataset))
    guessed = {
        "trained names": guesses(known, data["trained names"]),
        "unseen": guesses(class_counts(data["unseen"]), data["unseen"]),
        "together": guesses(class_counts(data["together"]), data["together"]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        untrained = _records(Path(scratch) / "untrained", [*options, *UNTRAINED, "pictures=0"])
        records = _records(Path(scratch) / "trained", options)
        if folder is not None and not quick:
            for number, picture in enumerate(sorted((Path(scratch) / "trained" / "pictures").glob("*.png"))[:3]):
                shrink(picture, folder / f"scene_{number + 1}.jpg")

    figures = []
    scenes = len(data["unseen"])
    whence = {"trained names": "of the training labels", "unseen": "of the labels that are scored"}
    for name, source in whence.items():
        scores = {guess: metric.compute() for guess, metric in guessed[name].items()}
        best = max(score[SCORE] for score in scores.values())
        for guess, score in scores.items():
            detail = f"aAcc {score['aAcc']:.1f}; " + (f"most frequent, {source}" if guess != "drawn" else "at random")
            figures.append(figure(f"mIoU, {name}, guess: {guess}", score[SCORE], None, "higher", detail))
        before, after = untrained[name], records[name]
        figures.append(figure(f"mIoU, {name}, untrained", before["metrics"][SCORE], None, "higher", _about(before)))
        figures.append(figure(f"mIoU, {name}, trained", after["metrics"][SCORE], best, "higher", _about(after)))
    exchanged = records["exchanged"]
    detail = f"{_about(exchanged)}; each asked for by another's name"
    figures.append(figure("mIoU, unseen, trained, exchanged", exchanged["metrics"][SCORE], None, "lower", detail))
    figures += _together(records["together"], guessed["together"]["drawn"], data["together"].classes, data["unseen"])
    seconds = records["trained names"]["run"]["seconds"]
    detail = f"training and its evaluation on {scenes} scenes"
    figures.append(figure("seconds", seconds, detail=detail))
    return figures


def _records(work_dir: Path, options: list[str]) -> dict[str, dict]:
    """Train and test; the record of each set of names."""
    verb("train", CONFIG, "--work-dir", str(work_dir), "--cfg-options", *options)
    head = str(work_dir / "head.safetensors")
    more = ["--cfg-options", *options] if options else []
    verb("test", CONFIG, head, "--benchmarks", "all", "--work-dir", str(work_dir), *more)
    found = {path.stem.removeprefix("results_"): path for path in work_dir.glob("results_*.json")}
    found["trained names"] = work_dir / "results.json"
    return {name: json.loads(path.read_text()) for name, path in found.items()}


def _about(record: dict) -> str:
    low, high = record["intervals"][SCORE]
    return f"95 % over scenes {low:.1f} to {high:.1f}; aAcc {record['metrics']['aAcc']:.1f}"


def _together(record: dict, drawn, classes, unseen) -> list[dict]:
    """Of all names at once: the mean over the things that were not trained, and over those that were."""
    found, chance = record["per_class"]["IoU"], dict(zip(classes, drawn.per_class()["IoU"], strict=True))
    things = [name for name in classes if " " in name]
    groups = {
        "not trained": [name for name in things if name in unseen.classes],
        "trained": [name for name in things if name not in unseen.classes],
    }
    return [
        figure(
            f"mIoU, together, {len(names)} things {group}", _mean(found, names), _mean(chance, names), "higher",
            "the target is a name drawn for each pixel",
        )
        for group, names in groups.items()
    ]  # fmt: skip


def _mean(scores: dict[str, float | None], names: list[str]) -> float:
    return mean(scores[name] for name in names if scores[name] is not None)
