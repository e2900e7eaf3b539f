"""Open-vocabulary segmentation from random weights on 100 photographs of COCO, in minutes on two cores.

    siglip2-dense benchmark coco --json docs/figures/coco.json
    siglip2-dense train catseg_coco128 --cfg-options train_dataloader.dataset.root=FOLDER \
        train_dataloader.dataset.classes=NAMES.json val_dataloader.dataset.root=FOLDER \
        val_dataloader.dataset.classes=NAMES.json

It is to show that all of it learns from photographs; how well CAT-Seg does is another matter, which begins with towers
trained on hundreds of millions of images and texts. Here it is evaluated on the very images that it was trained with;
the benchmark also scores 100 others. The cosines themselves are added to the scores (``direct``), as in catseg_demo.py.
FOLDER has train2017/ID.jpg and semantic/train2017/ID.png, labels 0 to 132 in the order of the category ids of COCO's
panoptic annotations, 255 where there is none.
"""

_base_ = ["_base_/runtime.py", "_base_/catseg_tiny.py"]

model = dict(
    encoder=dict(model_args=dict(patch_size=16, embed_dim=192)),
    heads=dict(segmentation=dict(head=dict(grid=4))),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        type="ImageFolder",
        root="data/coco128",
        split="train",
        images="{split}2017",
        labels="semantic/{split}2017",
        transforms=[dict(type="Resize", size=(64, 64)), dict(type="RandomFlip", p=0.5)],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        type="ImageFolder",
        root="data/coco128",
        split="train",
        images="{split}2017",
        labels="semantic/{split}2017",
        transforms=[dict(type="Resize", size=(64, 64), targets=False)],
    ),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        type="ImageFolder",
        root="data/coco128",
        split="val",
        images="{split}2017",
        labels="semantic/{split}2017",
        transforms=[dict(type="Resize", size=(64, 64), targets=False)],
    ),
)
train_cfg = dict(max_iters=900, val_interval=900, save_interval=300)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=20, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=900, eta_min=0.0, begin=0, end=900, by_epoch=False),
]
log_interval = 10
vis_backends = "json"  # losses as lines of it
