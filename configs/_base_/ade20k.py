"""ADE20K-150, and DINOv2's linear protocol on it (its config dinov2_vitl14_ade20k_linear)."""

train_dataloader = dict(
    batch_size=16,  # 2 on each of 8 GPUs there; batch norm over all 16
    num_workers=8,
    dataset=dict(
        type="ADE20K",
        split="train",
        transforms=[
            dict(type="RandomResize", short=512, ratio=(0.5, 2.0)),  # the long side is unbounded
            dict(type="RandomCrop", size=(512, 512), cat_max_ratio=0.75),
            dict(type="RandomFlip", p=0.5),
            dict(type="PhotoMetricDistortion"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="ADE20K", split="val", transforms=[dict(type="ResizeShortSide", short=512)]),
)
