"""TIPS v2's DPT depth head (google-deepmind/tips, pytorch/decoders.py and the v2 notebook) on NYUv2.

    siglip2-dense train protocols/tips_dpt_nyuv2

RMSE in metres that its README gives for TIPS v2 So400m/14: 0.339, without naming the head. What is published are
trained heads and how they are applied: the head, its taps, the bins and the size of the input below. How they were
trained is not: data, batch, schedule, optimizer and losses are DINOv2's in their place, and are marked so.
"""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/nyuv2.py",
    "../_base_/depth_38k.py",  # not published
    "../_base_/dinov2_depth.py",  # not published, but for what stands below
]

model = dict(
    encoder=dict(name="tipsv2-so400m-14-448"),
    heads=dict(
        depth=dict(
            # the ReLU is that of transformers' model, which gives the depth that its published weights are loaded for
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=256, activation="relu"),
            task=dict(bins=256, epsilon=0.001),
        )
    ),
)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomFlip", p=0.5),  # not published
            dict(type="Resize", size=(448, 448)),  # whatever the aspect
        ]
    )
)
val_dataloader = dict(dataset=dict(transforms=[dict(type="Resize", size=(448, 448), targets=False)]))
