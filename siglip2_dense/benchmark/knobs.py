"""What each knob of a protocol is worth that published recipes set differently: one at a time, from one base.

Two numbers of one encoder that were measured under two protocols differ for reasons like these. Figures are differences
to the base: points of mIoU on the 233 test images of CamVid, millimetres and degrees of RMSE on the last 50 frames of a
kitchen; in the details both scores, and the 95 % interval of their difference over drawings of the images that both
share. It says nothing of how other trainings would come out: for that there is the base with another seed.

Base of CamVid: batch norm and a 1x1 convolution on the last map with the final norm, images resized to 224 x 308
pixels, 460 steps of 8, AdamW 1e-3, cross-entropy of 1024 pixels of each image, tested whole, scored at 360 x 480. Base
of the kitchen, at 168 x 224 pixels and scored at 240 x 320: DINOv2's depth head of one layer with 64 bins from 0.1 to
5 m, with the final norm and without a global vector, 100 steps of 6, AdamW 1e-3; normals by a DPT head 32 wide. Heads
that read the same features train in one pass, each as if alone; features are stored.

Needs ``camvid/``, ``sevenscenes_redkitchen/`` and ``weights/`` in the folder that SIGLIP2_DENSE_TEST_DATA names.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from siglip2_dense.benchmark.camvid import fewer
from siglip2_dense.benchmark.kitchen import NAME as KITCHEN
from siglip2_dense.benchmark.knob_settings import (
    BASE,
    LITE0,
    VIT,
    Encoder,
    depth_heads,
    merged,
    normals_heads,
    resized,
    segmentation_heads,
    segmentation_runs,
    segmentation_tests,
    steps_of,
)
from siglip2_dense.benchmark.measure import data_folder, figure, verb
from siglip2_dense.engine.configs import config_folder
from siglip2_dense.metrics import rows
from siglip2_dense.metrics.paired import paired
from siglip2_dense.metrics.per_image import PerImage

BLOCKS = 2  # thousands of drawings


@dataclass(frozen=True)
class Bench:
    """Runs on one encoder and one set, by the command line; each gives the scores of its heads, image by image.

    folder: where all goes. bases: of the configs, in ``_base_``. common: settings of all.
    """

    folder: Path
    bases: tuple[str, ...]
    common: dict

    def train(self, name: str, heads: Mapping[str, dict], changed: dict | None = None) -> dict[str, PerImage]:
        """{what is changed: scores} of heads that train together."""
        config = self._config(name, list(heads.values()), changed or {})
        work_dir = self.folder / name
        verb("train", str(config), "--work-dir", str(work_dir), "--features", str(self.folder / "features"))
        found = rows.read(rows.place(work_dir / "results.json"))
        return {title: found[f"head{number}"].metric for number, title in enumerate(heads)}

    def test(self, name: str, of: str, head: dict, changed: dict) -> PerImage:
        """The scores of the one head that the run ``of`` has trained, tested otherwise."""
        config, out = self._config(name, [head], changed), self.folder / f"results_{name}.json"
        verb(
            "test", str(config), str(self.folder / of / "head.safetensors"), "--work-dir", str(self.folder / name),
            "--out", str(out), "--features", str(self.folder / "features"),
        )  # fmt: skip
        return rows.read(rows.place(out))["head0"].metric

    def _config(self, name: str, heads: Sequence[dict], changed: dict) -> Path:
        settings = merged(self.common, changed)
        settings = merged(settings, dict(model=dict(heads={f"head{i}": parts for i, parts in enumerate(heads)})))
        path = self.folder / f"{name}.py"
        lines = [f"_base_ = {[str(config_folder() / '_base_' / f'{base}.py') for base in self.bases]!r}"]
        path.write_text("\n".join([*lines, *(f"{key} = {value!r}" for key, value in settings.items())]) + "\n")
        return path


def bench_of(folder: Path, encoder: Encoder, data: Path, base: str, common: dict) -> Bench:
    """base: of the data, in ``_base_``."""
    folder.mkdir(parents=True)
    tower = dict(type="FrozenEncoder", name=encoder.timm, weights=str(data / "weights" / encoder.file))
    if encoder.model_args is not None:
        tower["model_args"] = encoder.model_args
    model = dict(model=dict(type="DenseProbe", encoder=tower), pictures=0, test_dataloader=None)
    return Bench(folder, ("runtime", base), merged(common, model))


def camvid(data: Path, scratch: Path, encoder: Encoder, quick: bool) -> list[dict]:
    """Figures of segmentation: points of mIoU."""
    size, larger, steps = ((84, 112), (112, 154), 6) if quick else ((224, 308), (280, 392), 460)
    root, heads = dict(root=str(data / "camvid")), segmentation_heads(encoder)
    sets = dict(train_dataloader=dict(dataset=root), val_dataloader=dict(dataset=root | dict(split="test")))
    bench = bench_of(
        scratch / encoder.timm, encoder, data, "camvid", merged(merged(sets, resized(size)), steps_of(steps))
    )
    base, found = _trained(bench, heads)
    classes = (data / "camvid" / "classes.txt").read_text().split()
    first = None if encoder is VIT else 1  # of the other encoder, what is worth a run of its own
    runs, tests = segmentation_runs(size, larger, steps, classes), segmentation_tests(size)
    for number, (title, changed) in enumerate(_first(runs, first).items()):
        found[title] = bench.train(f"run{number}", {BASE: heads[BASE]}, changed)[BASE]
    for number, (title, changed) in enumerate(_first(tests, first).items()):
        found[title] = bench.test(f"test{number}", "base", heads[BASE], changed)
    place = f"CamVid, {encoder.title}"
    figures = [_score(place, "mIoU", base), *_differences(place, "mIoU", base, found)]
    by_image = float(np.nanmean(base.scores(base.stacked())["mIoU"]))
    return [*figures, _rescored(place, "mIoU", base, "the mean of each image's mIoU", by_image)]


def kitchen(data: Path, scratch: Path, encoder: Encoder, quick: bool) -> list[dict]:
    """Figures of depth and normals: millimetres and degrees of RMSE."""
    steps = 3 if quick else 100
    root = dict(dataset=dict(root=str(data / KITCHEN)))
    common = merged(dict(train_dataloader=root, val_dataloader=root), resized((84, 112) if quick else (168, 224)))
    schedule = dict(type="CosineAnnealingLR", T_max=steps, eta_min=0.0, begin=0, end=steps, by_epoch=False)
    common |= dict(train_cfg=dict(max_iters=steps, val_interval=steps), param_scheduler=[schedule])
    bench = bench_of(scratch / f"kitchen_{encoder.timm}", encoder, data, "kitchen", common)
    depth, normals = _first(depth_heads(encoder), 2 if quick else None), {} if quick else normals_heads()
    base, found = _trained(bench, {**depth, **{f"normals: {title}": parts for title, parts in normals.items()}})
    mirrored = dict(model=dict(inference=dict(mode="whole", flip=True)))
    found["averaged with the mirrored image at test"] = bench.test("flip", "base", depth[BASE], mirrored)
    place = f"kitchen, {encoder.title}"
    of_normals = {title.removeprefix("normals: "): one for title, one in found.items() if title.startswith("normals: ")}
    of_depth = {title: one for title, one in found.items() if not title.startswith("normals: ")}
    figures = [
        _score(f"{place}, depth", "rmse", base, 1e3),
        *_differences(f"{place}, depth", "rmse", base, of_depth, 1e3),
    ]
    for name, words in (
        ("rmse_pooled", "the root over all pixels"),
        ("rmse_aligned", "each image scaled and shifted to fit"),
    ):
        figures.append(_rescored(f"{place}, depth", "rmse", base, words, base.compute()[name], 1e3))
    if of_normals:
        first = of_normals.pop(BASE)
        figures += [
            _score(f"{place}, normals", "rmse", first),
            *_differences(f"{place}, normals", "rmse", first, of_normals),
        ]
    return figures


def run(quick: bool) -> list[dict]:
    """Figures: the base's scores, and by how much they are others with each knob."""
    data, figures = data_folder("camvid"), []
    data_folder(KITCHEN)
    with TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if quick:
            data = _fewer(data, scratch / "fewer")
        for encoder in (LITE0,) if quick else (VIT, LITE0):
            figures += camvid(data, scratch, encoder, quick)
            figures += kitchen(data, scratch, encoder, quick)
            for folder in scratch.glob("*/features"):
                shutil.rmtree(folder)
    return figures


def _trained(bench: Bench, heads: Mapping[str, dict]) -> tuple[PerImage, dict[str, PerImage]]:
    """The scores of the base, which is trained alone and after the others, whose features serve it, and theirs."""
    found = bench.train("heads", {title: parts for title, parts in heads.items() if title != BASE})
    return bench.train("base", {BASE: heads[BASE]})[BASE], found


def _first(changes: dict, count: int | None) -> dict:
    """So many of them; all without a count."""
    return dict(list(changes.items())[:count])


def _fewer(data: Path, scratch: Path) -> Path:
    """Links to every eighth image of CamVid and every tenth frame of the kitchen, and the weights."""
    fewer(data, scratch)
    source = data / KITCHEN
    for path in (source / "intrinsics.txt", *sorted(source.glob("*/*/*"))[::10]):
        link = scratch / KITCHEN / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return scratch


def _score(place: str, name: str, base: PerImage, unit: float = 1.0) -> dict:
    low, high = base.intervals()[name]
    better, detail = _better(name), f"95 % over images {unit * low:.2f} to {unit * high:.2f}"
    return figure(f"{place}, {name} of the base", unit * base.compute()[name], better=better, detail=detail)


def _differences(place: str, name: str, base: PerImage, found: Mapping[str, PerImage], unit: float = 1.0) -> list[dict]:
    """unit: by what a score is multiplied for people."""
    figures = []
    for title, metric in found.items():
        score = paired([[base], [metric]], BLOCKS)[name]
        (other,) = score["others"]
        low, high = (unit * bound for bound in other["interval"])
        detail = f"{unit * score['first']:.2f} -> {unit * other['value']:.2f}, 95 % [{low:+.2f}, {high:+.2f}]"
        figures.append(figure(f"{place}: {title}", unit * other["difference"], better=_better(name), detail=detail))
    return figures


def _rescored(place: str, name: str, base: PerImage, title: str, value: float, unit: float = 1.0) -> dict:
    """The same predictions, scored otherwise."""
    first = base.compute()[name]
    detail = f"{unit * first:.2f} -> {unit * value:.2f}, of the same predictions"
    return figure(f"{place}: {title}", unit * (value - first), better=_better(name), detail=detail)


def _better(name: str) -> str:
    return "higher" if name == "mIoU" else "lower"
