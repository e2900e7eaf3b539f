"""NYUv2 depth: a linear head on a frozen encoder (SigLIP 2 paper, Table 2, column NYUv2 depth).

    siglip2-dense train probe_nyuv2_depth
    siglip2-dense train probe_nyuv2_depth --encoder dinov2-large-14 \
        --cfg-options model.heads.depth.head.norm=False

RMSE in metres in the paper:

    clip-large-14-224      0.553
    openclip-bigg-14-224   0.541   (a copy of the DINOv2 paper's "lin. 1")
    siglip-so400m-14-224   0.576
    siglip2-so400m-14-224  0.493
    siglip-so400m-14-384   0.563
    siglip2-so400m-14-384  0.466

Reach these first, they have public code ("lin. 1", on maps without the final norm): DINOv2 S/14 0.449, B/14 0.399,
L/14 0.384, g/14 0.344. The paper names neither head nor input size; this is DINOv2's one-layer head at its 480 x 640,
with the pooled vector in the place of the class token. For four layers: model.heads.depth.head.layers=even4.
"""

_base_ = ["_base_/runtime.py", "_base_/nyuv2.py", "_base_/depth_38k.py", "_base_/dinov2_depth.py"]

model = dict(
    encoder=dict(name="siglip2-so400m-14-384"),
    heads=dict(
        depth=dict(
            head=dict(type="LinearHead", layers="last", norm=True, pooled="concat", batch_norm=False, upsample=4),
        )
    ),
)
