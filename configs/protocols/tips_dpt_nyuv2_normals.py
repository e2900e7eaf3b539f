"""TIPS v2's DPT head of surface normals (google-deepmind/tips, pytorch/decoders.py and the v2 notebook) on NYUv2.

    siglip2-dense train protocols/tips_dpt_nyuv2_normals

No score of it is published. What is are trained heads and how they are applied: the head, its taps, three channels and
the size of the input below. How they were trained is not: data, batch, schedule, optimizer and loss are those of an
independent reproduction of the SigLIP 2 paper's table in their place, and are marked so.
"""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/nyuv2_geonet.py",  # not published
    "../_base_/probe_50k.py",  # not published
]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="tipsv2-so400m-14-448"),
    heads=dict(
        normals=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=256),
            task=dict(type="Normals", uncertainty=False),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01),  # not published
        )
    ),
)
train_dataloader = dict(
    dataset=dict(
        targets=("normals",),
        transforms=[
            dict(type="RandomFlip", p=0.5),  # not published
            dict(type="Resize", size=(448, 448)),  # whatever the aspect
        ],
    )
)
val_dataloader = dict(
    dataset=dict(targets=("normals",), transforms=[dict(type="Resize", size=(448, 448), targets=False)])
)
