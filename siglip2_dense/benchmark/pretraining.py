"""What pretraining is worth: linear probes on CamVid, pretrained encoders against the same ones with random weights.

Needs ``camvid/`` and ``weights/`` in the folder that SIGLIP2_DENSE_TEST_DATA names.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from siglip2_dense.benchmark.measure import data_folder, figure, verb

LITE0 = "efficientnet-lite0, strides 8+16+32"
VIT = "ViT-S/14 of 6 blocks, blocks 1+3+5"
INDEPENDENT = {  # mIoU on val that another implementation of the same protocol reached, one seed
    (LITE0, "pretrained"): 54.76,
    (LITE0, "random"): 24.15,
    (VIT, "pretrained"): 52.66,
    (VIT, "random"): 17.56,
}


def encoders(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Command-line arguments of each run."""
    head = "model.heads.segmentation.head."
    vit = ["--encoder", "vit_small_patch14_dinov2"]
    vit_head = [f"{head}layers=[1,3,5]", f"{head}stride=14", "model.encoder.model_args.depth=6"]
    files = {
        LITE0: folder / "weights" / "tf_efficientnet_lite0_in1k_fp16.safetensors",
        VIT: folder / "weights" / "vit_small_patch14_dinov2_b6_imgfocus_fp16.safetensors",
    }
    lite0 = ["--encoder", "tf_efficientnet_lite0"]
    return {
        (LITE0, "pretrained"): [*lite0, "--weights", str(files[LITE0]), "--cfg-options"],
        (LITE0, "random"): [*lite0, "--weights", "random", "--cfg-options"],
        (VIT, "pretrained"): [*vit, "--weights", str(files[VIT]), "--cfg-options", *vit_head],
        # timm starts LayerScale at 1e-5, which would leave hardly more than the patch embedding
        (VIT, "random"): [
            *vit, "--weights", "random", "--cfg-options", *vit_head, "model.encoder.model_args.init_values=1.0",
        ],
    }  # fmt: skip


def run(quick: bool) -> list[dict]:
    """Figures: mIoU on val and test of each run, wall time of training, peak memory."""
    folder = data_folder("camvid")
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        for (encoder, weights), arguments in encoders(folder).items():
            if quick and encoder != LITE0:
                continue
            work_dir = Path(scratch) / f"{encoder[:4]}_{weights}"
            options = [f"{split}_dataloader.dataset.root={folder / 'camvid'}" for split in ("train", "val", "test")]
            if quick:
                options += ["train_cfg.max_iters=20", "param_scheduler.0.total_steps=20"]
                options += [f"{split}_dataloader.dataset.transforms.0.size=(168,224)" for split in ("train", "val")]
            common = ["probe_camvid", "--work-dir", str(work_dir), *arguments, *options]
            verb("train", *common)
            train = json.loads((work_dir / "results.json").read_text())
            found = {"val": train}
            if not quick:
                verb("test", "probe_camvid", str(work_dir / "head.safetensors"), *common[1:])
                found["test"] = json.loads((work_dir / "results_test.json").read_text())
            for split, record in found.items():
                low, high = record["intervals"]["mIoU"]
                target = (
                    INDEPENDENT[encoder, weights] if split == "val" and weights == "pretrained" and not quick else None
                )
                detail = f"95 % over images {low:.2f} to {high:.2f}; aAcc {record['metrics']['aAcc']:.2f}"
                if split == "val":
                    detail += f"; an independent probe: {INDEPENDENT[encoder, weights]:.2f}"
                figures.append(
                    figure(
                        f"mIoU on {split}, {encoder}, {weights}", record["metrics"]["mIoU"], target, "higher", detail
                    )
                )
            figures.append(
                figure(
                    f"seconds, {encoder}, {weights}",
                    train["run"]["seconds"],
                    None,
                    "lower",
                    "training with its evaluation on val",
                )
            )
            figures.append(
                figure(
                    f"peak MiB, {encoder}, {weights}",
                    train["run"]["peak_memory_mib"],
                    None,
                    "lower",
                    "of the training process",
                )
            )
    return figures
