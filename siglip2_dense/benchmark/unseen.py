"""Names that were not trained with: CAT-Seg on generated scenes, with towers that begin at random.

``configs/catseg_demo.py`` says which names these are. "unseen" has the ten alone, on their own pixels, where the colour
tells them apart. "exchanged" asks for each by the name of another: what is left then is not due to the names. In
"together" all 33 compete, so that the kind counts too, and names stand beside that were trained. "Untrained" is the
same model before its first step. Guesses at the ten are made from the very labels that are scored, which no model sees.
The cosines are added to the scores (``direct``), which CAT-Seg does not do.
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
from siglip2_dense.metrics.segmentation import SegmentationMetric
from siglip2_dense.registry import DATASETS, build

CONFIG = "catseg_demo"
SCORE = "mIoU_labelled"
UNTRAINED = ["train_cfg.max_iters=1", "train_cfg.val_interval=1", "model.heads.segmentation.optim.lr=0.0", "pictures=0"]
FEW = 12  # scenes of --quick, of each set
SHOWN = 3


def run(quick: bool, folder: Path | None = None) -> list[dict]:
    """Figures: mIoU with names that were trained and others, of guesses, of the untrained and the trained model.

    folder: where pictures of validation scenes, with the names that were trained, are left.
    """
    config, options = Config.fromfile(find_config(CONFIG)), []
    datasets = {
        "train_dataloader": config.train_dataloader.dataset,
        "val_dataloader": config.val_dataloader.dataset,
        **{f"benchmarks.{name}": one.dataset for name, one in config.benchmarks.items()},
    }
    if quick:
        options = ["train_cfg.max_iters=3", "train_cfg.val_interval=3"]
        for place, settings in datasets.items():
            settings.length = FEW
            options.append(f"{place}.dataset.length={FEW}")
    train, trained, unseen, together = (
        build(DATASETS, datasets[place])
        for place in ("train_dataloader", "val_dataloader", "benchmarks.unseen", "benchmarks.together")
    )
    with tempfile.TemporaryDirectory() as scratch:
        before = _records(Path(scratch) / "before", [*options, *UNTRAINED])
        after = _records(Path(scratch) / "after", options)
        if folder is not None and not quick:
            for number, picture in enumerate(sorted(Path(scratch).glob("after/pictures/*.png"))[:SHOWN], 1):
                shrink(picture, folder / f"scene_{number}.jpg")
    figures = [
        *_beside_guesses("names of the training", guesses(class_counts(train), trained), before, after, "trained"),
        *_beside_guesses("unseen names", guesses(class_counts(unseen), unseen), before, after, "unseen"),
    ]
    detail = f"{_about(after['exchanged'])}; each asked for by another's name"
    score = after["exchanged"]["metrics"][SCORE]
    figures.append(figure("mIoU, unseen names, exchanged", score, detail=detail))
    drawn = guesses(class_counts(together), together)["drawn"]
    figures += _together(after["together"], together.classes, drawn, unseen.classes)
    seconds = after["trained"]["run"]["seconds"]
    return [*figures, figure("seconds", seconds, detail=f"training, and its evaluation on {len(trained)} scenes")]


def _records(work_dir: Path, options: list[str]) -> dict[str, dict]:
    """Train and test: the record of each benchmark, and of the names that were "trained"."""
    more = ["--work-dir", str(work_dir), *(["--cfg-options", *options] if options else [])]
    verb("train", CONFIG, *more)
    verb("test", CONFIG, str(work_dir / "head.safetensors"), "--benchmarks", "all", *more)
    files = {path.stem.removeprefix("results_"): path for path in work_dir.glob("results_*.json")}
    files["trained"] = work_dir / "results.json"
    return {name: json.loads(path.read_text()) for name, path in files.items()}


def _beside_guesses(
    title: str, guessed: dict[str, SegmentationMetric], before: dict, after: dict, name: str
) -> list[dict]:
    """The untrained and the trained model; the trained one's target is the best guess."""
    scores = {guess: metric.compute() for guess, metric in guessed.items()}
    best = max(score[SCORE] for score in scores.values())
    found = [
        figure(f"mIoU, {title}, guess: {guess}", score[SCORE], better="higher", detail=f"aAcc {score['aAcc']:.1f}")
        for guess, score in scores.items()
    ]
    for state, record, target in (("untrained", before[name], None), ("trained", after[name], best)):
        score = record["metrics"][SCORE]
        found.append(figure(f"mIoU, {title}, {state}", score, target, "higher", _about(record)))
    return found


def _together(record: dict, classes, drawn: SegmentationMetric, unseen) -> list[dict]:
    """Of all names at once, the mean over the things that were not trained, and over those that were."""
    chance = dict(zip(classes, drawn.per_class()["IoU"], strict=True))
    figures = []
    for group, wanted in (("unseen", True), ("trained", False)):
        names = [name for name in classes if " " in name and (name in unseen) == wanted]
        score, target = (_mean(scores, names) for scores in (record["per_class"]["IoU"], chance))
        detail = f"aAcc of all 33 names {record['metrics']['aAcc']:.1f}; the target is one drawn for each pixel"
        figures.append(figure(f"mIoU, {len(names)} {group} things, all names asked", score, target, "higher", detail))
    return figures


def _mean(scores: dict[str, float | None], names: list[str]) -> float:
    return mean(scores[name] for name in names if scores[name] is not None)


def _about(record: dict) -> str:
    low, high = record["intervals"][SCORE]
    return f"95 % over scenes {low:.1f} to {high:.1f}; aAcc {record['metrics']['aAcc']:.1f}"
