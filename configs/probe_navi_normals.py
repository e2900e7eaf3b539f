"""NAVI surface normals of single objects: a DPT head on a frozen encoder (SigLIP 2 paper, Table 2, NAVI normals).

    siglip2-dense train probe_navi_normals

Angular RMSE in degrees in the paper:

    clip-large-14-224      25.5
    siglip-so400m-14-224   26.0
    siglip2-so400m-14-224  25.4
    siglip-so400m-14-384   25.4
    siglip2-so400m-14-384  25.0

Reach these first, they have public code: probe3d's DINOv2 B/14 25.27, L/14 24.52. Its normals are derived from depth
with the camera's axis at the corner of the crop, which tilts them by 6 to 13 degrees; ``normals="corner"`` does the
same, for comparison with the literature. True ones: ``--cfg-options train_dataloader.dataset.normals=true
val_dataloader.dataset.normals=true``. The paper names neither head nor loss; the head is that of TIPS, the loss
probe3d's.
"""

_base_ = ["_base_/runtime.py", "_base_/navi.py", "_base_/probe_50k.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="siglip2-so400m-14-384"),
    heads=dict(
        normals=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=256),
            task=dict(type="Normals", uncertainty=True),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01),
        )
    ),
)
train_dataloader = dict(dataset=dict(targets=("normals",), normals="corner"))
val_dataloader = dict(dataset=dict(targets=("normals",), normals="corner"))
