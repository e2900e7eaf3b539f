"""CamVid cut to 336 x 336 pixels: a 1x1 convolution on the last map, 20 epochs of features that are extracted once.

    siglip2-dense train probe_camvid_crops --features features

Nothing is drawn for an image, so that its one stored view is all there is of it. ``siglip2-dense benchmark
camvid`` runs it on a ViT-S/14 of six blocks, and measures what it takes beside the encoder's pass.
"""

_base_ = ["_base_/runtime.py", "_base_/camvid.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="dinov2-small-14"),
    heads=dict(
        segmentation=dict(
            head=dict(type="LinearHead", batch_norm=False),
            task=dict(type="Segmentation"),
            optim=dict(type="AdamW", lr=1e-3),
        )
    ),
)
train_dataloader = dict(dataset=dict(transforms=[dict(type="CenterCrop", size=(336, 336))]))
val_dataloader = dict(dataset=dict(transforms=[dict(type="CenterCrop", size=(336, 336))]))
test_dataloader = dict(dataset=dict(transforms=[dict(type="CenterCrop", size=(336, 336))]))
train_cfg = dict(max_iters=918, val_interval=918)
