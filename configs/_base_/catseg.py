"""CAT-Seg's training on COCO-Stuff and its inference (the CVPR version's published code), for any image-text encoder.

Four images a step over all processes, all 171 classes in each: with more processes give train_dataloader.batch_size so
that it stays at four, or train for fewer steps. What is not published so: bfloat16 (float32 with TF32 products there),
images brought to their short side by OpenCV's bilinear kernel (Pillow's there, with antialiasing), and padding in the
mean colour around the image, should one be smaller than the crop. Every 5,000 steps it was evaluated without windows.
"""

model = dict(
    type="CATSeg",
    encoder=dict(type="FrozenEncoder", precision="bf16", trainable=["q", "v"]),  # and "positions", where they are to
    text=dict(trainable=["q", "v"], checkpointing=True),
    encoder_optim=dict(lr_mult=0.01),  # of both towers
    clip_norm=0.01,
    precision="bf16",
    canvas=(384, 384),
    heads=dict(
        segmentation=dict(
            head=dict(type="CATSegHead", grid=24, residual="class", blocks=2, pool=2),
            task=dict(type="OpenVocabulary", synonyms="first", templates="scene", ignored="negative"),
            optim=dict(type="AdamW", lr=2e-4, weight_decay=1e-4, norm_decay=0.0),
        )
    ),
    inference=dict(mode="slide", crop=384, stride=256, size=(640, 640), overview=True, classes="reference"),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=8,
    dataset=dict(
        type="COCOStuff",
        split="train",
        transforms=[
            dict(type="RandomResize", short=384, long=1333, ratio=(1.0, 1.0)),
            dict(type="RandomCrop", size=(384, 384)),
            dict(type="PhotoMetricDistortion"),
            dict(type="RandomFlip", p=0.5),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="COCOStuff", split="val", transforms=[dict(type="ResizeShortSide", short=640, long=2560)]),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="ADE20K", split="val", transforms=[dict(type="ResizeShortSide", short=640, long=2560)]),
)
train_cfg = dict(max_iters=80_000, val_interval=20_000, save_interval=1_000)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=80_000, eta_min=0.0, begin=0, end=80_000, by_epoch=False)]
