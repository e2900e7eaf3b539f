"""DINOv2's DPT depth head on NYUv2 (Oquab et al. 2024, Table 11, column "DPT"; head dinov2_vitl14_nyu_dpt).

    siglip2-dense train protocols/dinov2_dpt_nyuv2

RMSE in metres in the paper: DINOv2 S/14 0.356, B/14 0.317, L/14 0.293, g/14 0.279; OpenCLIP G/14 0.414. Of 24 blocks
the published config has one other than this rule: for L/14 give --cfg-options
model.heads.depth.head.layers=[4,11,17,23].
Batch, step and what is otherwise than there, see dinov2_linear_nyuv2; first weights are drawn as TIPS draws its.
"""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/nyuv2.py",
    "../_base_/depth_38k.py",
    "../_base_/dinov2_depth.py",
]

model = dict(
    encoder=dict(name="dinov2-base-14"),
    heads=dict(
        depth=dict(
            head=dict(
                type="DPTHead",
                layers="even4",
                norm=False,
                pooled="readout",
                width=256,
                activation="relu",
                gelu="exact",
                output="convolutions",
            ),
            task=dict(bins=None),  # the head says the depth itself
        )
    ),
)
