"""CamVid road scenes: a linear head on a frozen encoder, in minutes on two CPU cores.

    siglip2-dense train probe_camvid
    siglip2-dense test probe_camvid work_dirs/probe_camvid_efficientnet-lite0/head.safetensors

15 epochs of 367 images. The validation images come from a sequence that is also in the training set; the test images
are the harder and more honest ones. The layers are stages of a convolutional network; with a vision transformer give
``--cfg-options model.heads.segmentation.head.layers=even4 model.heads.segmentation.head.stride=PATCH`` as well.
"""

_base_ = ["_base_/runtime.py", "_base_/camvid.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="efficientnet-lite0"),
    heads=dict(
        segmentation=dict(
            head=dict(type="LinearHead", layers=[2, 3, 4], norm=False, stride=16),
            task=dict(type="Segmentation"),
            optim=dict(type="AdamW", lr=1e-3, weight_decay=1e-3),
        )
    ),
)
train_cfg = dict(max_iters=690, val_interval=690, save_interval=115)
param_scheduler = [dict(type="OneCycleLR", total_steps=690, by_epoch=False)]  # to each head's lr and back
