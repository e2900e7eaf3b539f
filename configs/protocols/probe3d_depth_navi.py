"""probe3d's depth of single objects (El Banani et al. 2024; configs/depth_training.yaml with dataset=navi_reldepth).

    siglip2-dense train protocols/probe3d_depth_navi

RMSE in the paper: DINOv2 B/14 0.0763, L/14 0.0721; CLIP L/14 0.2058; SigLIP L/16 0.1588. What is otherwise than there,
see configs/_base_/navi.py and protocols/probe3d_depth_nyuv2; colours there are also changed after the pixels are
normalised, which clips them, and here before.
"""

_base_ = ["../_base_/runtime.py", "../_base_/navi.py", "../_base_/probe3d_navi.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="dinov2-base-14"),
    heads=dict(
        depth=dict(
            head=dict(type="Probe3DHead", layers="even4", norm=False, pooled="concat", width=512),
            task=dict(
                type="Depth",
                min_depth=1e-3,
                max_depth=1.0,
                bins=256,
                epsilon=0.1,
                sig=10.0,
                gradient=0.5,
                unit="relative",
            ),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01),
        )
    ),
)
train_dataloader = dict(dataset=dict(targets=("depth",), depth="relative"))
val_dataloader = dict(dataset=dict(targets=("depth",), depth="relative"))
