"""ADE20K semantic segmentation: a linear head on a frozen encoder (SigLIP 2 paper, Table 2, column ADE20k).

    siglip2-dense train probe_ade20k
    siglip2-dense train probe_ade20k --encoder clip-large-14-224

mIoU in the paper:

    clip-large-14-224      39.0
    openclip-bigg-14-224   39.3   (a copy of the DINOv2 paper's linear probe)
    siglip-so400m-14-224   37.6
    siglip2-so400m-14-224  41.8
    siglip-so400m-14-384   40.8
    siglip2-so400m-14-384  45.4

Reach these first, they have public code: DINOv2 S/14 44.3, B/14 47.3, L/14 47.7, g/14 49.0. The paper does not say at
which size its images enter the encoder; here it is DINOv2's 512 with windows 512/341.
"""

_base_ = ["_base_/runtime.py", "_base_/ade20k.py", "_base_/linear_40k.py", "_base_/dinov2_linear.py"]

model = dict(encoder=dict(name="siglip2-so400m-14-384"))
