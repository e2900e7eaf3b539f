"""probe3d's surface normals of single objects (El Banani et al. 2024; configs/snorm_training.yaml with dataset=navi).

    siglip2-dense train protocols/probe3d_normals_navi

Angular RMSE in degrees in the paper: DINOv2 B/14 25.27, L/14 24.52; CLIP L/14 41.41; SigLIP L/16 37.01. Normals have
the camera's axis at the corner of the crop, as there. What is otherwise than there, see protocols/probe3d_depth_navi.
"""

_base_ = ["../_base_/runtime.py", "../_base_/navi.py", "../_base_/probe3d_navi.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="dinov2-base-14"),
    heads=dict(
        normals=dict(
            head=dict(type="Probe3DHead", layers="even4", norm=False, pooled="concat", width=512),
            task=dict(type="Normals", uncertainty=True),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01),
        )
    ),
)
train_dataloader = dict(dataset=dict(targets=("normals",), normals="corner"))
val_dataloader = dict(dataset=dict(targets=("normals",), normals="corner"))
