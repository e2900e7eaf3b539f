"""DINOv2's linear depth head of one layer on NYUv2 (Oquab et al. 2024, 7.4 and Table 11, column "lin. 1").

    siglip2-dense train protocols/dinov2_linear_nyuv2

RMSE in metres in the paper: DINOv2 S/14 0.449, B/14 0.399, L/14 0.384, g/14 0.344; OpenCLIP G/14 0.541. The config of
the linear heads is not published: crops, optimizer and schedule are those of the DPT head's (dinov2_vitl14_nyu_dpt),
with 2 images on each of 8 GPUs, which its successor has. The published code keeps the step with the best abs_rel on the
test images; here the last one counts, and the record has the best beside it. probe_nyuv2_depth is this recipe for the
SigLIP 2 paper's encoders, on maps with the final norm.
"""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/nyuv2.py",
    "../_base_/depth_38k.py",
    "../_base_/dinov2_depth.py",
]

model = dict(
    encoder=dict(name="dinov2-large-14"),
    heads=dict(
        depth=dict(
            # raw maps and the class token of the same layer (hub/depthers.py); 4 times finer, no batch norm (7.4)
            head=dict(type="LinearHead", layers="last", norm=False, pooled="concat", batch_norm=False, upsample=4),
        )
    ),
)
