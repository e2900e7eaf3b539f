"""Stored views against live augmentation on CamVid: the mIoU after as many steps.

Crops, scales and mirror images that are drawn anew in each epoch, against v of each image that are drawn once, stored,
and seen again and again. A linear head on an EfficientNet-Lite0, at half the size: what is asked is what changes, not
how high it is.

Needs ``camvid/`` and ``weights/`` in the folder that SIGLIP2_DENSE_TEST_DATA names.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from siglip2_dense.benchmark.camvid import fewer, options
from siglip2_dense.benchmark.measure import data_folder, figure, verb
from siglip2_dense.engine.configs import find_config

VIEWS = (1, 2, 4, 8)
AUGMENTED = """
model = dict(canvas=(168, 224))
train_dataloader = dict(dataset=dict(transforms=[
    dict(type="RandomResize", short=180, ratio=(0.5, 2.0)),
    dict(type="RandomCrop", size=(168, 224)),
    dict(type="RandomFlip", p=0.5),
]))
"""


def run(quick: bool) -> list[dict]:
    """Figures: mIoU in points, live, and by how much that of stored views is less."""
    folder = data_folder("camvid")
    views, seeds, steps = ((1, 2), (0,), 6) if quick else (VIEWS, (0, 1), 460)
    scores: dict[int | None, list[float]] = {}
    with TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if quick:
            folder = fewer(folder, scratch / "fewer")
        weights = folder / "weights" / "tf_efficientnet_lite0_in1k_fp16.safetensors"
        config = scratch / "augmented.py"
        config.write_text(f"_base_ = [{str(find_config('probe_camvid'))!r}]\n{AUGMENTED}")
        for seed in seeds:
            given = options(
                folder, train_cfg__max_iters=steps, train_cfg__val_interval=steps, seed=seed, pictures=0,
                param_scheduler__0__total_steps=steps, val_dataloader__dataset__transforms__0__size="(168,224)",
            )  # fmt: skip
            for count in (None, *views):
                work_dir = scratch / f"{count}_{seed}"
                common = [str(config), "--encoder", "tf_efficientnet_lite0", "--weights", str(weights)]
                stored = [] if count is None else ["--features", str(scratch / f"features_{seed}")]
                more = [] if count is None else [f"feature_store.views={count}"]
                verb("train", *common, "--work-dir", str(work_dir), *stored, "--cfg-options", *given, *more)
                record = json.loads((work_dir / "results.json").read_text())
                scores.setdefault(count, []).append(record["metrics"]["mIoU"])
    live = fmean(scores[None])
    found = [figure("mIoU on val, live augmentation", live, better="higher", detail=_each(scores[None]))]
    for count in views:
        target = 0.3 if count == max(VIEWS) else None
        less = live - fmean(scores[count])
        found.append(figure(f"mIoU, live less {count} stored views", less, target, detail=_each(scores[count])))
    return found


def _each(values: list[float]) -> str:
    return "seeds " + ", ".join(f"{value:.2f}" for value in values)
