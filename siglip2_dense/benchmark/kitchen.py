"""Real depth end to end: heads on 200 Kinect frames of a kitchen, pretrained encoders against random weights.

Needs ``sevenscenes_redkitchen/`` and ``weights/`` in the folder that SIGLIP2_DENSE_TEST_DATA names. It is one room:
the figures show that the heads learn and that pretraining helps, not how well either would do elsewhere.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from siglip2_dense.benchmark.measure import data_folder, figure, shrink, verb
from siglip2_dense.data.rgbd import RGBDFolder
from siglip2_dense.tasks import Depth, Normals

NAME = "sevenscenes_redkitchen"
LITE0, VIT = "efficientnet-lite0", "ViT-S/14 of 6 blocks"
FRAME = "00025_frame-000875"  # in the middle of the test frames
HEADS = {  # head in the config: unit
    "depth_linear": "m",
    "depth_dpt": "m",
    "normals_dpt": "degrees",
}


def encoders(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Command-line arguments of each run."""
    files = {
        LITE0: folder / "weights" / "tf_efficientnet_lite0_in1k_fp16.safetensors",
        VIT: folder / "weights" / "vit_small_patch14_dinov2_b6_imgfocus_fp16.safetensors",
    }
    lite0, vit = ["--encoder", "tf_efficientnet_lite0"], ["--encoder", "vit_small_patch14_dinov2"]
    depth = ["model.encoder.model_args.depth=6", "model.heads.depth_linear.head.stride=14"]
    return {
        (LITE0, "pretrained"): [*lite0, "--weights", str(files[LITE0]), "--cfg-options"],
        (LITE0, "random"): [*lite0, "--weights", "random", "--cfg-options"],
        (VIT, "pretrained"): [*vit, "--weights", str(files[VIT]), "--cfg-options", *depth],
        # timm starts LayerScale at 1e-5, which would leave hardly more than the patch embedding
        (VIT, "random"): [
            *vit, "--weights", "random", "--cfg-options", *depth, "model.encoder.model_args.init_values=1.0",
        ],
    }  # fmt: skip


def run(quick: bool, folder: Path | None = None) -> list[dict]:
    """Figures: RMSE of each head and encoder on the test frames beside that of a constant, and the time of a run.

    folder: where pictures of one test frame are left.
    """
    data = data_folder(NAME)
    constants = constant_predictors(data / NAME, every=15 if quick else 1)
    figures = [
        figure(f"RMSE, {what}, no image at all", rmse, detail=f"{unit}; {how} of all training pixels")
        for what, (rmse, unit, how) in constants.items()
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for (encoder, weights), arguments in encoders(data).items():
            if quick and encoder != LITE0:
                continue
            work_dir = Path(scratch) / f"{encoder[:4]}_{weights}"
            options = [f"{split}_dataloader.dataset.root={data / NAME}" for split in ("train", "val")]
            if quick:
                options += ["train_cfg.max_iters=4", "pictures=0"]
            verb("train", "probe_kitchen", "--work-dir", str(work_dir), *arguments, *options)
            record = json.loads((work_dir / "results.json").read_text())
            for head, unit in HEADS.items():
                figures.append(_score(record, head, unit, f"{encoder}, {weights}", constants))
            seconds = record["run"]["seconds"]
            detail = "three heads in one pass, training and the evaluation at its end"
            figures.append(figure(f"seconds, {encoder}, {weights}", seconds, detail=detail))
            if folder is not None and weights == "pretrained" and not quick:
                for head in HEADS:
                    name = "vit" if encoder == VIT else "lite0"
                    shrink(work_dir / "pictures" / f"{FRAME}_{head}.png", folder / f"{name}_{head}.jpg")
    return figures


def constant_predictors(root: Path, every: int) -> dict[str, tuple[float, str, str]]:
    """RMSE on the test frames, its unit, and what was predicted: the medians of the training frames, everywhere."""
    settings = dict(root=root, targets=("depth", "normals"), invalid=(65535,), window=9)
    train = [RGBDFolder(split="train", **settings)[i] for i in range(0, 150, every)]
    test = RGBDFolder(split="test", **settings)
    depth = torch.cat([s.depth[s.depth > 0] for s in train]).median()
    normals = torch.cat([s.normals[:, s.normals.any(0)] for s in train], dim=1).median(1).values
    tasks = {"depth": Depth(0.1, 5.0).metric(), "normals": Normals().metric()}
    for i in range(0, len(test), every):
        sample = test[i]
        tasks["depth"].update(torch.full_like(sample.depth, depth), sample.depth, i)
        flat = F.normalize(normals, dim=0).view(3, 1, 1).expand_as(sample.normals)
        tasks["normals"].update(flat, sample.normals, i)
    return {
        "depth": (tasks["depth"].compute()["rmse"], "m", f"the median, {depth:.3f} m,"),
        "normals": (tasks["normals"].compute()["rmse"], "degrees", "the direction of the medians of x, y and z"),
    }


def _score(record: dict, head: str, unit: str, title: str, constants: dict) -> dict:
    metrics = {key.removeprefix(f"{head}."): v for key, v in record["metrics"].items() if key.startswith(f"{head}.")}
    low, high = record["intervals"][f"{head}.rmse"]
    constant = constants[head.partition("_")[0]][0]
    more = (
        f"abs rel {metrics['abs_rel']:.3f}, d1 {metrics['d1']:.3f}"
        if unit == "m"
        else f"median {metrics['median']:.1f}, within 11.25 {metrics['recall_11.25']:.3f}"
    )
    detail = f"{unit}, 95 % over frames {low:.3f} to {high:.3f}; {more}; the target is the constant's"
    return figure(f"RMSE, {head}, {title}", metrics["rmse"], constant, detail=detail)
