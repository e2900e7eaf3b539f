"""A miniature of a table's depth and normals columns: 200 Kinect frames of one kitchen, minutes on two CPU cores.

    siglip2-dense train mini_kitchen

One pass for both heads, at half of probe_kitchen's steps and with narrower ones, for any encoder; the data are laid out
as it says.
"""

_base_ = ["_base_/runtime.py", "_base_/kitchen.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="efficientnet-lite0"),
    heads=dict(
        depth=dict(
            head=dict(type="LinearHead", layers="last", norm=True, pooled="concat", upsample=4),
            task=dict(type="Depth", min_depth=0.1, max_depth=5.0, bins=64, sig=1.0),
            optim=dict(type="AdamW", lr=1e-3, weight_decay=0.01, clip_norm=35),
        ),
        normals=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=32),
            task=dict(type="Normals", uncertainty=True),
            optim=dict(type="AdamW", lr=1e-3, weight_decay=0.01, clip_norm=35),
        ),
    ),
)
train_cfg = dict(max_iters=50, val_interval=50, save_interval=25)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, begin=0, end=5, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=50, eta_min=0.0, begin=0, end=50, by_epoch=False),
]
log_interval = 25
