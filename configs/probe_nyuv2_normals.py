"""NYUv2 surface normals: a DPT head on a frozen encoder (SigLIP 2 paper, Table 2, column NYUv2 normals).

    siglip2-dense train probe_nyuv2_normals

Angular RMSE in degrees in the paper:

    clip-large-14-224      24.3
    siglip-so400m-14-224   25.9
    siglip2-so400m-14-224  24.9
    siglip-so400m-14-384   24.1
    siglip2-so400m-14-384  23.0

Reach these first, they have public code: probe3d's DINOv2 B/14 22.41, L/14 21.55. Trained on GeoNet's frames and
scored on the 654 labelled test frames with Ladický's normals where they are marked valid and the depth was measured:
two estimators, as in probe3d. probe3d's numbers are of the 480 x 480 pixels in the middle, with its own mask:
protocols/probe3d_normals_nyuv2 comes close. The paper names neither head nor loss; the head is that of TIPS, the loss
probe3d's. Its own numbers for CLIP (35.8) are far from the paper's, so its head is not the one of that table.
"""

_base_ = ["_base_/runtime.py", "_base_/nyuv2_geonet.py", "_base_/probe_50k.py"]

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
train_dataloader = dict(dataset=dict(targets=("normals",)))
val_dataloader = dict(dataset=dict(targets=("normals",), transforms=[]))  # the whole frame
