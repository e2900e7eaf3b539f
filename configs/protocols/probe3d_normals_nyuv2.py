"""probe3d's surface normals on NYUv2 (El Banani et al. 2024; configs/snorm_training.yaml, return_multilayer=True).

    siglip2-dense train protocols/probe3d_normals_nyuv2

Angular RMSE in degrees in the paper: DINOv2 B/14 22.41, L/14 21.55; CLIP L/14 35.84; SigLIP L/16 34.20. Otherwise than
there, beside what protocols/probe3d_depth_nyuv2 says: only pixels count that FAIR's mask calls valid. The paper trains
on 795 images, its code on GeoNet's.
"""

_base_ = ["../_base_/runtime.py", "../_base_/nyuv2_geonet.py", "../_base_/probe3d_nyuv2.py"]

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
train_dataloader = dict(dataset=dict(targets=("normals",)))
val_dataloader = dict(dataset=dict(targets=("normals",)))
