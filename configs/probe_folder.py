"""Images and masks of your own: a linear head on a frozen encoder.

    siglip2-dense data verify folder --root data/my_data
    siglip2-dense train probe_folder --encoder siglip2-base-16-256

Lay the data out as images/{train,val}/NAME.jpg, labels/{train,val}/NAME.png (255 = not counted) and classes.txt.
A few hundred images do with these 2 000 steps; the classes are read from the folder.
"""

_base_ = ["_base_/runtime.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="siglip2-so400m-14-384"),
    heads=dict(
        segmentation=dict(
            head=dict(type="LinearHead", layers="last4", norm=True),
            task=dict(type="Segmentation"),
            optim=dict(type="AdamW", lr=1e-3, weight_decay=1e-3),
        )
    ),
    inference=dict(mode="slide", crop=512, stride=341),
    canvas=(512, 512),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    dataset=dict(
        type="ImageFolder",
        root="data/my_data",
        split="train",
        ignore=255,
        transforms=[
            dict(type="RandomResize", short=512, ratio=(0.5, 2.0)),
            dict(type="RandomCrop", size=(512, 512), cat_max_ratio=0.75),
            dict(type="RandomFlip", p=0.5),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(
        type="ImageFolder",
        root="data/my_data",
        split="val",
        ignore=255,
        transforms=[dict(type="ResizeShortSide", short=512)],
    ),
)
train_cfg = dict(max_iters=2_000, val_interval=500)
param_scheduler = [dict(type="OneCycleLR", total_steps=2_000, by_epoch=False)]  # to each head's lr and back
