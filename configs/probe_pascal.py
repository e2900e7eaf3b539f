"""PASCAL VOC 2012 semantic segmentation: a linear head on a frozen encoder (SigLIP 2 paper, Table 2, column PASCAL).

    siglip2-dense train probe_pascal
    siglip2-dense train probe_pascal --encoder clip-large-14-224

mIoU in the paper:

    clip-large-14-224      74.5
    openclip-bigg-14-224   71.4   (a copy of the DINOv2 paper's linear probe)
    siglip-so400m-14-224   72.0
    siglip2-so400m-14-224  77.1
    siglip-so400m-14-384   73.8
    siglip2-so400m-14-384  78.1

Reach these first, they have public code: DINOv2 S/14 81.1, B/14 82.5, L/14 82.1, g/14 83.0. The paper does not say at
which size its images enter the encoder; here it is DINOv2's 512 with windows 512/341.
"""

_base_ = ["_base_/runtime.py", "_base_/pascal.py", "_base_/linear_40k.py", "_base_/dinov2_linear.py"]

model = dict(encoder=dict(name="siglip2-so400m-14-384"))
