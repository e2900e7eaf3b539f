"""VisBench's semantic segmentation (visbench_semantic_seg of 0.11): VOC 2012 at 224 pixels, a 1x1 convolution.

    siglip2-dense train protocols/visbench_linear_pascal

mIoU on its board: DINOv2 B/14 75.33, S/14 73.28; CLIP B/16 65.46. Every value is in its code (tasks/dense_base.py,
tasks/schedule.py, data/dense.py) and the script that builds the board: VOC's own 1,464 training images, scored at 224 x
224 in the middle, without any augmentation. There images are shrunk by Pillow's bicubic kernel, here by OpenCV's
bilinear one. Its depth and normals read a copy of NYUv2 whose lists are not published, so they have no preset.
"""

_base_ = ["../_base_/runtime.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="dinov2-base-14"),
    heads=dict(
        segmentation=dict(
            head=dict(type="LinearHead", layers="last", norm=True, batch_norm=False),
            task=dict(type="Segmentation", average="valid"),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=1e-4),
        )
    ),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    dataset=dict(
        type="PascalVOC",
        split="train_voc",
        transforms=[
            dict(type="RandomResize", short=224, ratio=(1.0, 1.0)),
            dict(type="CenterCrop", size=(224, 224)),
        ],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    dataset=dict(
        type="PascalVOC",
        split="val",
        transforms=[
            dict(type="RandomResize", short=224, ratio=(1.0, 1.0)),  # the labels too
            dict(type="CenterCrop", size=(224, 224)),
        ],
    ),
)
train_cfg = dict(max_iters=1_830, val_interval=1_830, save_interval=183)  # 10 epochs
param_scheduler = [
    dict(type="LinearLR", start_factor=0.0036496, begin=0, end=274, by_epoch=False),  # 1.5 epochs
    dict(type="CosineAnnealingLR", T_max=1_556, eta_min=0.0, begin=274, end=1_830, by_epoch=False),
]
