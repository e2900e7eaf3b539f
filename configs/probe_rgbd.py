"""Colour and depth images of your own: depth and normals heads on one frozen encoder, trained in one pass.

    siglip2-dense data verify rgbd --root data/my_rgbd
    siglip2-dense train probe_rgbd --encoder siglip2-base-16-256

Lay the data out as images/{train,val}/NAME.jpg, depth/{train,val}/NAME.png (16 bits, millimetres, 0 = none) and
intrinsics.txt (3 x 3, of the images as they are stored); normals are derived from the depth. With class labels as well
(labels/{train,val}/NAME.png, classes.txt) add "labels" to both ``targets`` and another head,
``segmentation=dict(head=dict(type="LinearHead", layers="last4"), task=dict(type="Segmentation"), optim=...)``.
Each head has its own layers, loss, optimizer and scores; leave out what you do not want. Depth is the first of the
heads, so it decides which step was the best.
"""

_base_ = ["_base_/runtime.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="siglip2-so400m-14-384"),
    heads=dict(
        depth=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=256),
            task=dict(type="Depth", min_depth=1e-3, max_depth=10.0, sig=1.0, gradient=0.5),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01, clip_norm=35),
        ),
        depth_linear=dict(
            head=dict(type="LinearHead", layers="last4", norm=True, pooled="concat", upsample=4),
            task=dict(type="Depth", min_depth=1e-3, max_depth=10.0, sig=1.0),
            optim=dict(type="AdamW", lr=1e-3, weight_decay=0.01, clip_norm=35),
        ),
        normals=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=256),
            task=dict(type="Normals", uncertainty=True),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01, clip_norm=35),
        ),
    ),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    dataset=dict(
        type="RGBDFolder",
        root="data/my_rgbd",
        split="train",
        targets=("depth", "normals"),
        transforms=[
            dict(type="RandomResize", short=480, ratio=(1.0, 1.5)),
            dict(type="RandomCrop", size=(480, 480)),
            dict(type="RandomFlip", p=0.5),
            dict(type="ColourJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, p=0.8),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(
        type="RGBDFolder",
        root="data/my_rgbd",
        split="val",
        targets=("depth", "normals"),
        transforms=[dict(type="ResizeShortSide", short=480)],
    ),
)
train_cfg = dict(max_iters=2_000, val_interval=500)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, begin=0, end=200, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=2_000, eta_min=0.0, begin=0, end=2_000, by_epoch=False),
]
