"""Open-vocabulary segmentation on generated scenes, from tiny towers that begin at random, without any download.

    siglip2-dense train catseg_demo --work-dir work_dirs/catseg_demo
    siglip2-dense test catseg_demo work_dirs/catseg_demo/head.safetensors --benchmarks all
    siglip2-dense predict IMAGE --config catseg_demo --head work_dirs/catseg_demo/head.safetensors \
        --prompts "red sphere, blue box, floor"

Things are called by colour and kind. It trains with 20 of the 30 names and with floor, wall and ceiling; the other ten,
one of each colour, are in the images too, but their pixels do not count. The benchmarks ask for

- unseen: these ten, on their own pixels; since each has a colour of its own, the colour is enough to tell them apart;
- exchanged: the same, but each asked for by the name of another, to see that it is the names that count;
- together: all 33, so that "red sphere" stands beside "red box" and "blue sphere", which were trained.

What comes of it, and what guessing does, is in docs/results.md. Towers that were trained with pairs of images and texts
know what a red sphere is before CAT-Seg begins; these know nothing, and all that they learn of "red" is of 20 names. So
that they meet soon, the cosines themselves are added to the scores (``direct``), which is not CAT-Seg's way.
"""

_base_ = ["_base_/runtime.py", "_base_/catseg_tiny.py"]

model = dict(
    encoder=dict(model_args=dict(patch_size=8, embed_dim=96)),
    heads=dict(segmentation=dict(head=dict(grid=8))),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        type="GeneratedScenes",
        split="train",
        length=2000,
        size=(64, 64),
        transforms=[dict(type="RandomFlip", p=0.5)],
        classes=[
            "floor", "wall", "ceiling", "red box", "yellow box", "green box", "purple box", "pink box", "white box",
            "black box", "orange sphere", "yellow sphere", "blue sphere", "purple sphere", "brown sphere",
            "white sphere", "red cylinder", "orange cylinder", "green cylinder", "blue cylinder", "pink cylinder",
            "brown cylinder", "black cylinder",
        ],
    ),
)  # fmt: skip
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        type="GeneratedScenes",
        split="val",
        length=200,
        size=(64, 64),
        classes=[
            "floor", "wall", "ceiling", "red box", "yellow box", "green box", "purple box", "pink box", "white box",
            "black box", "orange sphere", "yellow sphere", "blue sphere", "purple sphere", "brown sphere",
            "white sphere", "red cylinder", "orange cylinder", "green cylinder", "blue cylinder", "pink cylinder",
            "brown cylinder", "black cylinder",
        ],
    ),
)  # fmt: skip
benchmarks = dict(
    unseen=dict(
        dataset=dict(
            type="GeneratedScenes",
            split="val",
            length=200,
            size=(64, 64),
            classes=[
                "red sphere", "orange box", "yellow cylinder", "green sphere", "blue box", "purple cylinder",
                "pink sphere", "brown box", "white cylinder", "black sphere",
            ],
        ),
    ),
    exchanged=dict(
        dataset=dict(
            type="GeneratedScenes",
            split="val",
            length=200,
            size=(64, 64),
            classes=[
                "red sphere", "orange box", "yellow cylinder", "green sphere", "blue box", "purple cylinder",
                "pink sphere", "brown box", "white cylinder", "black sphere",
            ],
        ),
        queries={
            "red sphere": ["blue box"],
            "orange box": ["green sphere"],
            "yellow cylinder": ["purple cylinder"],
            "green sphere": ["red sphere"],
            "blue box": ["orange box"],
            "purple cylinder": ["white cylinder"],
            "pink sphere": ["black sphere"],
            "brown box": ["pink sphere"],
            "white cylinder": ["brown box"],
            "black sphere": ["yellow cylinder"],
        },
    ),
    together=dict(
        dataset=dict(
            type="GeneratedScenes",
            split="val",
            length=200,
            size=(64, 64),
            classes=[
                "floor", "wall", "ceiling", "red box", "orange box", "yellow box", "green box", "blue box",
                "purple box", "pink box", "brown box", "white box", "black box", "red sphere", "orange sphere",
                "yellow sphere", "green sphere", "blue sphere", "purple sphere", "pink sphere", "brown sphere",
                "white sphere", "black sphere", "red cylinder", "orange cylinder", "yellow cylinder",
                "green cylinder", "blue cylinder", "purple cylinder", "pink cylinder", "brown cylinder",
                "white cylinder", "black cylinder",
            ],
        ),
    ),
)  # fmt: skip
train_cfg = dict(max_iters=1000, val_interval=1000, save_interval=250)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=20, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=1000, eta_min=0.0, begin=0, end=1000, by_epoch=False),
]
log_interval = 10
