"""PASCAL VOC 2012 with the SBD masks, and DINOv2's linear protocol on it (its config dinov2_vitl14_voc2012_linear)."""

train_dataloader = dict(
    batch_size=16,  # 2 on each of 8 GPUs there; batch norm over all 16
    num_workers=8,
    dataset=dict(
        type="PascalVOC",
        split="train",
        transforms=[
            dict(type="RandomResize", short=512, long=2048, ratio=(0.5, 2.0)),
            dict(type="RandomCrop", size=(512, 512), cat_max_ratio=0.75),
            dict(type="RandomFlip", p=0.5),
            dict(type="PhotoMetricDistortion"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="PascalVOC", split="val", transforms=[dict(type="ResizeShortSide", short=512, long=2048)]),
)
