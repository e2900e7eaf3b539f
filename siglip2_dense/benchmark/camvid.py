"""Stored features on a real data set, by the command line from the images to the score: CamVid, linear heads.

The yardstick: crops of 336 pixels, a pretrained ViT-S/14 of six blocks, 20 epochs (``configs/probe_camvid_crops.py``).
Everything is in parts of the encoder's bare pass over the same 468 images, decoded before, in batches of 8. Starting
Python and importing the libraries is counted in; its seconds are in the details. The sampled loss takes 1024 pixels of
an image. VisBench 0.27 (its own cache, two other cores) was measured at 3.4 bare passes, 2.4 from its cache of 3.1 GB,
mIoU 51.8.

End to end: a sweep of 24 settings with a ViT-B/16 of random weights, from extracting to the scores on the test images,
in parts of one probe of as many steps through the encoder, of which the first steps are measured and multiplied.

Needs ``camvid/`` and ``weights/`` in the folder that SIGLIP2_DENSE_TEST_DATA names.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from siglip2_dense.benchmark.measure import data_folder, figure, numbers_of_own_process, verb
from siglip2_dense.engine.configs import find_config

HEAD = "model.heads.segmentation"
TO_REACH = 51.8  # mIoU of VisBench's run
YARDSTICK = {  # loss: most of a cold run, and of one from the store, in parts of the bare pass
    "exact": (1.5, 0.5),
    "sampled": (1.3, 0.2),
}
SAMPLED = {f"{HEAD}.task.loss": "sampled", f"{HEAD}.task.samples": 1024}
PARTS = ("reading", "head", "loss", "backward", "update")
WARM_UP, MEASURED = 20, 100  # steps
SWEEP = (
    "sweep.lr=[1e-4,3e-4,1e-3,3e-3]",
    "sweep.weight_decay=[0,1e-4,1e-2]",
    "sweep.layers=['last','last4']",
)


def fewer(folder: Path, scratch: Path) -> Path:
    """Every eighth image of CamVid, by links, and the weights."""
    names = [Path("weights"), Path("camvid/classes.txt")]
    for path in sorted((folder / "camvid/labels").rglob("*.png"))[::8]:
        label = path.relative_to(folder / "camvid/labels")
        names += [Path("camvid/labels") / label, Path("camvid/images") / label.with_suffix(".jpg")]
    for name in names:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).symlink_to(folder / name)
    return scratch


def written(settings: dict) -> list[str]:
    """For the command line."""
    return [f"{key}={value}" for key, value in settings.items()]


def options(folder: Path, **more) -> list[str]:
    """The data, and other settings by name with double underscores for dots, for the command line."""
    roots = {f"{split}_dataloader.dataset.root": folder / "camvid" for split in ("train", "val", "test")}
    return written(roots | {key.replace("__", "."): value for key, value in more.items()})


def vit(folder: Path) -> list[str]:
    weights = folder / "weights" / "vit_small_patch14_dinov2_b6_imgfocus_fp16.safetensors"
    return ["--encoder", "vit_small_patch14_dinov2", "--weights", str(weights)]


def bare(folder: str, size: int) -> list[float]:
    """Seconds of the pass over the crops of CamVid's training and validation images; in a process of its own."""
    import torch

    from siglip2_dense.contracts import Tap
    from siglip2_dense.data.folder import ImageFolder
    from siglip2_dense.encoders import FrozenEncoder

    encoder = FrozenEncoder(*vit(Path(folder))[1::2], model_args=dict(depth=6))
    crop = [dict(type="CenterCrop", size=(size, size))]
    images = []
    for split in ("train", "val"):
        data = ImageFolder(f"{folder}/camvid", split, ignore=11, transforms=crop)
        images += [data[(0, index)].image for index in range(len(data))]
    with torch.no_grad():
        encoder.features(images[:8], [Tap(5, True)])
        start = time.perf_counter()
        for first in range(0, len(images), 8):
            encoder.features(images[first : first + 8], [Tap(5, True)])
    return [time.perf_counter() - start]


def parts(folder: str, store: str, sampled: bool) -> list[float]:
    """Milliseconds of a training step from the store: reading, heads, loss, backward, update; in its own process."""
    from mmengine.config import Config

    from siglip2_dense.engine.optimizers import optimizers_of
    from siglip2_dense.engine.run import Run

    name, weights = vit(Path(folder))[1::2]
    config = Config.fromfile(find_config("probe_camvid_crops"))
    config.merge_from_dict(
        {
            **{f"{split}_dataloader.dataset.root": f"{folder}/camvid" for split in ("train", "val")},
            "model.encoder": dict(name=name, weights=weights, model_args=dict(depth=6)),
            "feature_store": dict(dir=store),
            "work_dir": store,
            **(SAMPLED if sampled else {}),
        }
    )
    run = Run(config)
    loader, (wrapper,) = iter(run.train_loader()), optimizers_of(run.probe).values()
    run.probe.train()
    steps = []
    for number in range(WARM_UP + MEASURED):
        run.probe.step, marks = number, [time.perf_counter()]

        def done(value, marks=marks):
            marks.append(time.perf_counter())
            return value

        batch = done(run.probe.data_preprocessor(next(loader), True))
        raw = done(run.probe.raw(batch["inputs"]))
        task, geometry = run.probe.tasks["segmentation"], batch["inputs"].geometry
        (loss,) = done(task.loss(raw["segmentation"], geometry, batch["data_samples"], number)).values()
        done(loss.backward())
        wrapper.step()
        done(wrapper.zero_grad())
        steps.append([1e3 * (end - start) for start, end in pairwise(marks)])
    return [median(times) for times in zip(*steps[WARM_UP:], strict=True)]


def starting() -> float:
    """Seconds until Python has what training needs."""
    code = "import siglip2_dense.engine.sweep, siglip2_dense.data, siglip2_dense.heads, siglip2_dense.tasks"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def timed(name: str, *arguments: str) -> float:
    start = time.perf_counter()
    verb(name, *arguments)
    return time.perf_counter() - start


def yardstick(folder: Path, scratch: Path, quick: bool) -> list[dict]:
    """Figures: runs with either loss, cold and from the store, in bare passes; bytes on disk; mIoU in points."""
    size, steps = (168, 40) if quick else (336, 918)
    sizes = {f"{split}_dataloader__dataset__transforms__0__size": f"({size},{size})" for split in ("train", "val")}
    common = options(folder, train_cfg__max_iters=steps, train_cfg__val_interval=steps, **sizes)
    (seconds,), start = numbers_of_own_process("camvid", f"bare({str(folder)!r}, {size})"), starting()
    figures, scores = [], {}
    for loss, targets in YARDSTICK.items():
        if quick and loss == "exact":
            continue
        store = scratch / f"features_{loss}"
        for how, target in zip(("cold", "from the store"), targets, strict=True):
            work_dir = scratch / f"{loss}_{how[:4]}"
            taken = timed(
                "train", "probe_camvid_crops", "--work-dir", str(work_dir), "--features", str(store), *vit(folder),
                "--cfg-options", "model.encoder.model_args.depth=6", *common,
                *written(SAMPLED if loss == "sampled" else {}),
            )  # fmt: skip
            record = json.loads((work_dir / "results.json").read_text())
            scores[loss] = record["metrics"]["mIoU"]
            detail = (
                f"{taken:.1f} s, of which {start:.1f} to start and {record['run']['seconds']:.1f} in training and its "
                f"evaluation; the bare pass {seconds:.1f} s"
            )
            figures.append(
                figure(f"{loss} loss, {how} / bare pass", taken / seconds, None if quick else target, detail=detail)
            )
        if not quick:
            figures.append(_profile(loss, folder, store, 8e3 / record["run"]["images_per_second"]))
    held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    figures.append(figure("gigabytes on disk", held / 1e9, 0.25))
    if not quick:
        figures.append(figure("mIoU on val, exact loss", scores["exact"], TO_REACH, "higher"))
        figures.append(figure("mIoU on val, exact less sampled loss", scores["exact"] - scores["sampled"], 0.5))
    return figures


def _profile(loss: str, folder: Path, store: Path, step: float) -> dict:
    """Where a step from the store goes, the runner's share being the rest of it."""
    times = numbers_of_own_process("camvid", f"parts({str(folder)!r}, {str(store)!r}, {loss == 'sampled'})")
    told = ", ".join(f"{part} {taken:.1f}" for part, taken in zip(PARTS, times, strict=True))
    detail = f"{told}, the runner and its waiting {max(step - sum(times), 0):.1f}"
    return figure(f"milliseconds of a step from the store, {loss} loss", step, detail=detail)


def end_to_end(folder: Path, scratch: Path, quick: bool) -> dict:
    """Extracting, a sweep of 24 settings and the test, against one probe through the encoder."""
    steps, measured, size = (46, 2, "(112,144)") if quick else (918, 36, "(224,304)")
    resized = {f"{split}_dataloader__dataset__transforms__0__size": size for split in ("train", "val", "test")}
    shallow = {"model__encoder__model_args__depth": 4} if quick else {}

    def run(name: str, steps: int, *more: str, features: str | None = None) -> tuple[float, float]:
        """Seconds of all, and of a step."""
        given = options(
            folder, train_cfg__max_iters=steps, train_cfg__val_interval=steps, param_scheduler__0__total_steps=steps,
            pictures=0, **{f"{HEAD}.head.layers": "last", f"{HEAD}.head.norm": True}, **resized, **shallow,
        )  # fmt: skip
        work_dir = scratch / name
        stored = ["--features", str(scratch / features)] if features else []
        encoder = ["--encoder", "siglip2-base-16-256", "--weights", "random"]
        taken = timed(
            "train", "probe_camvid", "--work-dir", str(work_dir), *encoder, *stored, "--cfg-options", *given, *more
        )
        tested = [str(work_dir / "chosen.py")] if stored else ["probe_camvid", *encoder, "--cfg-options", *given]
        if not quick:
            taken += timed(
                "test", tested[0], str(work_dir / "head.safetensors"), *stored, "--out", str(work_dir / "tested.json"),
                "--work-dir", str(work_dir), *tested[1:],
            )  # fmt: skip
        return taken, 8 / json.loads((work_dir / "results.json").read_text())["run"]["images_per_second"]

    ours, _ = run("sweep", steps, *written(SAMPLED), *SWEEP, features="base")
    first, step = run("plain", measured)
    plain = first + (steps - measured) * step
    detail = f"24 settings {ours:.0f} s; one probe {plain:.0f} s, from {step:.2f} s a step of 8 images"
    name = "extraction, sweep of 24 settings, test / one probe through the encoder"
    return figure(name, ours / plain, None if quick else 0.2, detail=detail)


def run(quick: bool) -> list[dict]:
    folder = data_folder("camvid")
    with TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if quick:
            folder = fewer(folder, scratch / "fewer")
        return [*yardstick(folder, scratch, quick), end_to_end(folder, scratch, quick)]
