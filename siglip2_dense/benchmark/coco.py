"""CAT-Seg on real photographs, from random weights: 100 images of COCO, their 133 panoptic classes by name.

Needs ``coco128/`` and ``weights/`` in the folder that SIGLIP2_DENSE_TEST_DATA names. Two tiny towers and the head train
together, ``configs/catseg_coco128.py``. It shows that all of it learns from photographs: the loss falls below that of
any constant, and the images that it was trained with are segmented better than guesses from their own labels. How well
CAT-Seg does is another matter: that needs towers that know images and texts, and more than 100 photographs. The cosines
are added to the scores (``direct``), which CAT-Seg does not do. Pictures are of images that were trained with.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import mean

from PIL import Image

from siglip2_dense.benchmark.guesses import class_counts, constant_loss, guesses
from siglip2_dense.benchmark.measure import data_folder, figure, shrink, verb
from siglip2_dense.data.folder import ImageFolder
from siglip2_dense.viz.curves import curves

NAME, CONFIG = "coco128", "catseg_coco128"
SCORE = "mIoU_labelled"
ENDS = 5  # values of the log that a figure of the loss is the mean of
SHOWN = 3  # images


def run(quick: bool, folder: Path | None = None) -> list[dict]:
    """Figures: the loss as it falls, mIoU on the images of the training and on others, each beside that of guesses.

    folder: where the curve of the loss, and pictures of images, are left.
    """
    root = data_folder(NAME) / NAME
    with tempfile.TemporaryDirectory() as scratch:
        names = Path(scratch) / "names.json"
        names.write_text(json.dumps(class_names(root)))
        options = [f"{split}_dataloader.dataset.root={root}" for split in ("train", "val", "test")]
        options += [f"{split}_dataloader.dataset.classes={names}" for split in ("train", "val", "test")]
        if quick:
            options += ["train_cfg.max_iters=20", "train_cfg.val_interval=20", "log_interval=2", "pictures=0"]
        work_dir = Path(scratch) / "run"
        verb("train", CONFIG, "--work-dir", str(work_dir), "--cfg-options", *options)
        verb("test", CONFIG, str(work_dir / "head.safetensors"), "--work-dir", str(work_dir), "--cfg-options", *options)
        records = {
            "train": json.loads((work_dir / "results.json").read_text()),
            "val": json.loads((work_dir / "results_val.json").read_text()),
        }
        losses = losses_of(work_dir)
        layout = dict(root=root, classes=names, images="{split}2017", labels="semantic/{split}2017")
        data = {split: ImageFolder(split=split, **layout) for split in records}
        counts = class_counts(data["train"])
        scores = {split: guesses(counts, images) for split, images in data.items()}
        if folder is not None and not quick:
            _draw(folder, losses, work_dir / "pictures")

    constant = constant_loss(counts)
    figures = [figure("loss, the best constant", constant, detail="probabilities are the classes' frequencies")]
    steps = losses[ENDS - 1][0]
    for end, part, target in (("first", losses[:ENDS], None), ("last", losses[-ENDS:], constant)):
        score = mean(loss for _, loss in part)
        figures.append(figure(f"loss, {end} {steps} steps", score, target, detail=f"of {losses[-1][0]}"))
    for split, record in records.items():
        for guess, metric in scores[split].items():
            found = metric.compute()
            detail = f"aAcc {found['aAcc']:.1f}; " + ("at random" if guess == "drawn" else "most frequent in training")
            figures.append(figure(f"mIoU on {split}, guess: {guess}", found[SCORE], None, "higher", detail))
        best = max(metric.compute()[SCORE] for metric in scores[split].values())
        low, high = record["intervals"][SCORE]
        detail = f"95 % over images {low:.2f} to {high:.2f}; aAcc {record['metrics']['aAcc']:.1f}; the target is the"
        figures.append(figure(f"mIoU on {split}", record["metrics"][SCORE], best, "higher", f"{detail} best guess's"))
    run = records["train"]["run"]
    figures.append(figure("seconds", run["seconds"], detail="training, and the evaluation on its images"))
    figures.append(figure("peak MiB", run["peak_memory_mib"], detail="of the training process"))
    return figures


def class_names(root: Path) -> list[str]:
    """In the order of the labels, from COCO's panoptic annotations."""
    categories = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())["categories"]
    return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]


def losses_of(work_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) as they were logged, each the mean of the steps before it."""
    (path,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def _draw(folder: Path, losses: list[tuple[int, float]], pictures: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    points = [(step, loss, None) for step, loss in losses]
    curve = curves({"training": {"loss": points}}, "step", ["mean binary cross-entropy"])
    Image.fromarray(curve).save(folder / "loss.jpg", quality=85)
    for number, picture in enumerate(sorted(pictures.glob("*.png"))[:SHOWN]):
        shrink(picture, folder / f"train_{number + 1}.jpg")
