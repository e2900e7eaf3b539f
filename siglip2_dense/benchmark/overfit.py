"""Boxes end to end: OWL-ViT learns 16 photographs of COCO by heart, and is asked for all of COCO's 80 names in them.

Needs ``coco_tiny/`` in the folder that SIGLIP2_DENSE_TEST_DATA names. A small image tower trains from nothing, the text
tower stays at random: the figures show that boxes, names, matching, losses and scores belong together, not how well
anything is detected elsewhere.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from siglip2_dense.benchmark.measure import data_folder, figure, shrink, verb

NAME, FILE = "coco_tiny", "annotations/instances_train2017.json"
IMAGES, STEPS = 16, 500
TARGET = 50.0  # AP50
SHOWN = 4  # pictures of a page
CONFIG = """
seed = 0
log_interval = 50
pictures = {shown}
model = dict(
    type="OWLViT",
    encoder=dict(
        type="FrozenEncoder", name="clip-base-16-224", weights="random", trainable="all",
        model_args=dict(img_size=256, depth=4, embed_dim=192, num_heads=3, num_classes=64)),
    text=dict(cache=False, model_args=dict(embed_dim=64, width=64, heads=2, layers=1, context_length=16)),
    encoder_optim=dict(lr_mult=1.0),
    example_clip=1.0,
    heads=dict(detection=dict(
        head=dict(type="OWLViTHead"), task=dict(type="Detection", templates="name"),
        optim=dict(type="Adam", lr=5e-4))),
    inference=dict(mode="square", size=256),
)
train_dataloader = dict(
    batch_size={batch}, num_workers=1, dataset=dict(type="CocoDetection", split="train", root={root!r}))
val_dataloader = dict(
    batch_size={batch}, num_workers=1, dataset=dict(type="CocoDetection", split="train", root={root!r}))
train_cfg = dict(max_iters={steps}, val_interval={steps})
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=40, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max={steps} - 40, eta_min=0.0, begin=40, end={steps}, by_epoch=False),
]
"""


def run(quick: bool, folder: Path | None = None) -> list[dict]:
    """Figures: AP50 and AP on the images that were learnt, time and memory.

    folder: where some pictures are left.
    """
    images, steps = (4, 60) if quick else (IMAGES, STEPS)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        boxes = first_images(data_folder(NAME) / NAME, root, images)
        config = root / "overfit.py"
        config.write_text(CONFIG.format(root=str(root), steps=steps, batch=min(images, 8), shown=SHOWN))
        verb("train", str(config), "--work-dir", str(root / "run"))
        record = json.loads((root / "run" / "results.json").read_text())
        for picture in sorted((root / "run" / "pictures").iterdir()) if folder is not None and not quick else ():
            shrink(picture, folder / f"{picture.stem}.jpg")
    detail = f"{images} images with {boxes} boxes, {steps} steps of {min(images, 8)} images, 256 pixels"
    scores = record["metrics"]
    return [
        figure("AP50 on what was learnt", scores["AP50"], None if quick else TARGET, "higher", detail),
        figure("AP on what was learnt", scores["AP"], better="higher", detail=detail),
        figure("seconds", record["run"]["seconds"], detail="training and the evaluation at its end"),
        figure("peak MiB", record["run"]["peak_memory_mib"], detail="of the training process"),
    ]


def first_images(source: Path, root: Path, count: int) -> int:
    """A set of the first images of ``source``, below ``root``; returns the number of their boxes."""
    content = json.loads((source / FILE).read_text())
    content["images"] = sorted(content["images"], key=lambda image: image["id"])[:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    (root / FILE).parent.mkdir(parents=True)
    (root / FILE).write_text(json.dumps(content))
    (root / "train2017").symlink_to(source / "train2017")
    return len(content["annotations"])
