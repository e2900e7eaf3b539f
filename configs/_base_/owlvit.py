"""OWL-ViT's training on Objects365 and Visual Genome, and its evaluation on LVIS, for any image-text encoder.

Numbers are those of Minderer et al. 2022 (Table A3) for CLIP B/16, and of scenic's published code for what it leaves
open. 256 images a step over all processes: with other than 8 give train_dataloader.batch_size so that it stays at that.
What is not published so: bfloat16 (float32 there), position tables resampled by timm's bicubic kernel (bilinear there).

The gradient of each image is clipped by itself, which is worth 1 to 2.3 AP and takes the images of a process one by
one. The cheaper way: `--cfg-options model.example_clip=None` (the norm over all images is then at most 1); losses are
then divided by the boxes of all images of a step, since divided by each image's own they would cost 4 to 5 AP under
that clip (Table A5). With that clip weights, gradients and Adam's state can also be divided among the processes
(FSDP2), where they do not fit on one device: `train_cfg.sharded=True`.
Frozen towers, the head alone: `model.encoder.trainable=none model.text.trainable=none model.encoder_optim=None
model.text_optim=None model.encoder.drop_path=0 model.text.drop_path=0`.
"""

model = dict(
    type="OWLViT",
    encoder=dict(type="FrozenEncoder", precision="bf16", trainable="all", checkpointing=True, drop_path=0.2),
    text=dict(trainable="all", checkpointing=True, drop_path=0.1),
    encoder_optim=dict(lr_mult=1.0),
    text_optim=dict(lr=2e-6),
    example_clip=1.0,
    precision="bf16",
    heads=dict(
        detection=dict(
            head=dict(type="OWLViTHead"),
            task=dict(type="Detection", templates="7-best"),
            optim=dict(type="Adam", lr=5e-5),
        )
    ),
    inference=dict(mode="square", size=768),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    dataset=dict(
        type="DetectionMixture",
        sets=[
            dict(dataset=dict(type="Objects365V1", split="train"), weight=0.8),
            dict(dataset=dict(type="VisualGenome", split="train"), weight=0.2, prompts=False),
        ],
        size=768,
        transforms=[dict(type="RandomFlip", p=0.5), dict(type="RandomBoxCrop")],
        mosaics=(0.4, 0.3, 0.3),
        rare="coco/annotations/lvis_v1_val.json",
        exclude=[dict(type="LVIS", split="val"), dict(type="CocoDetection", split="val")],
    ),
)
val_dataloader = dict(batch_size=4, num_workers=4, dataset=dict(type="LVIS", split="val"))
train_cfg = dict(max_iters=140_000, val_interval=35_000, save_interval=1_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=1_000, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=139_000, eta_min=0.0, begin=1_000, end=140_000, by_epoch=False),
]
