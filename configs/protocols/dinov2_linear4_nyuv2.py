"""DINOv2's linear depth head of four layers on NYUv2 (Oquab et al. 2024, 7.4 and Table 11, column "lin. 4").

    siglip2-dense train protocols/dinov2_linear4_nyuv2

RMSE in metres in the paper: OpenCLIP G/14 0.510. Layers are those of hub/depthers.py; of 24 blocks it has one other
than this rule: for L/14 give --cfg-options model.heads.depth.head.layers=[4,11,17,23]. The rest as in
dinov2_linear_nyuv2.
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
            head=dict(type="LinearHead", layers="even4", norm=False, pooled="concat", batch_norm=False, upsample=4),
        )
    ),
)
