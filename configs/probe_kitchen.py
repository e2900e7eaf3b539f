"""200 Kinect frames of one kitchen (7-Scenes): depth and normals heads on a frozen encoder, in minutes on two cores.

    siglip2-dense train probe_kitchen
    siglip2-dense test probe_kitchen work_dirs/probe_kitchen_efficientnet-lite0/head.safetensors

Lay it out as images/{train,test}/NAME.jpg and depth/{train,test}/NAME.png of 240 x 320 pixels (every second row and
column of the published frames, in millimetres) with intrinsics.txt (fx = fy = 292.5, cx = 160, cy = 120).

4 epochs of the first 150 frames; the last 50, in time, are the test. It is one room seen from other places: scores
show that heads learn, and how encoders differ here, but nothing of other rooms. Colour and depth are off by some
pixels against each other. Normals are planes fitted to 9 x 9 pixels of depth. DPT heads are 64 wide instead of 256. The
linear head joins its layers at stride 16; with a vision transformer give
``--cfg-options model.heads.depth_linear.head.stride=PATCH`` as well.
"""

_base_ = ["_base_/runtime.py", "_base_/kitchen.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="efficientnet-lite0"),
    heads=dict(
        depth_linear=dict(
            head=dict(type="LinearHead", layers="even4", norm=True, pooled="concat", stride=16, upsample=4),
            task=dict(type="Depth", min_depth=0.1, max_depth=5.0, sig=1.0),
            optim=dict(type="AdamW", lr=1e-3, weight_decay=0.01, clip_norm=35),
        ),
        depth_dpt=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=64),
            task=dict(type="Depth", min_depth=0.1, max_depth=5.0, sig=1.0, gradient=0.5),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01, clip_norm=35),
        ),
        normals_dpt=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=64),
            task=dict(type="Normals", uncertainty=True),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01, clip_norm=35),
        ),
    ),
)
train_cfg = dict(max_iters=100, val_interval=100, save_interval=50)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, begin=0, end=10, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=100, eta_min=0.0, begin=0, end=100, by_epoch=False),
]
log_interval = 25
