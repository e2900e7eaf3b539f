"""Generated scenes: segmentation, depth and normals heads on one small pretrained encoder, without any download.

    siglip2-dense demo
    siglip2-dense train probe_demo
    siglip2-dense train probe_demo --encoder siglip2-base-16-256   (where the hub can be reached)

The scenes are ray-cast, so that their targets are exact; the numbers compare encoders on a toy, not on photographs.
The three heads train in one pass of the encoder, each with its own layers, loss and optimizer.
"""

_base_ = ["_base_/runtime.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="efficientnet-lite0"),
    heads=dict(
        segmentation=dict(
            head=dict(type="LinearHead", layers="even4", norm=True),
            task=dict(type="Segmentation"),
            optim=dict(type="AdamW", lr=3e-3, weight_decay=1e-4),
        ),
        depth=dict(
            head=dict(type="LinearHead", layers="even4", norm=True, upsample=2),
            task=dict(type="Depth", min_depth=0.1, max_depth=10.0, bins=64),
            optim=dict(type="AdamW", lr=3e-3, weight_decay=1e-4),
        ),
        normals=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, width=32),
            task=dict(type="Normals", uncertainty=True),
            optim=dict(type="AdamW", lr=1e-3, weight_decay=1e-2, clip_norm=35),
        ),
    ),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        type="GeneratedScenes", split="train", length=240, size=(192, 256), transforms=[dict(type="RandomFlip", p=0.5)]
    ),
)
val_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(type="GeneratedScenes", split="val", length=60, size=(192, 256))
)
train_cfg = dict(max_iters=120, val_interval=60)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=20, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=120, eta_min=0.0, begin=0, end=120, by_epoch=False),
]
log_interval = 20
