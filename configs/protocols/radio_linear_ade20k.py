"""RADIO's linear probe of ADE20K (Ranzinger et al. 2024; mmseg/configs/radio/radio_linear_8xb2-80k_ade20k-512x512.py).

    siglip2-dense train protocols/radio_linear_ade20k

mIoU that its README gives: C-RADIO v4 H/16 55.2. Every value is in the published config or in mmsegmentation's config
of the data, which it is built on. There crops of 512 are laid in the upper left of 518 x 518, a multiple of its patch;
here they are padded to the next multiple of the encoder's patch on all sides, and at test the padding is cut off again.
"""

_base_ = ["../_base_/runtime.py", "../_base_/ade20k.py", "../_base_/dinov2_linear.py"]

model = dict(
    encoder=dict(name="cradiov4-huge-16-512"),
    heads=dict(segmentation=dict(optim=dict(weight_decay=0.0))),
    inference=dict(_delete_=True, mode="whole"),
)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomResize", short=512, long=2048, ratio=(0.5, 2.0)),
            dict(type="RandomCrop", size=(512, 512), cat_max_ratio=0.75),
            dict(type="RandomFlip", p=0.5),
            dict(type="PhotoMetricDistortion"),
        ]
    )
)
val_dataloader = dict(dataset=dict(transforms=[dict(type="ResizeShortSide", short=512, long=2048)]))
train_cfg = dict(max_iters=80_000, val_interval=5_000, save_interval=1_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1_500, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=1_500, end=80_000, by_epoch=False),  # one after the other here
]
