"""DINOv2's linear probe of ADE20K (Oquab et al. 2024, Table 10, "lin."; its config dinov2_vitl14_ade20k_linear).

    siglip2-dense train protocols/dinov2_linear_ade20k

mIoU in the paper: DINOv2 S/14 44.3, B/14 47.3, L/14 47.7, g/14 49.0; OpenCLIP G/14 39.3. Every value is in the
published config. Otherwise than there: padding is cut off again before scores are brought to the image, which there
come out 1.2 % too large, and the position table is resampled by timm's kernel. probe_ade20k is this recipe for the
SigLIP 2 paper's encoders.
"""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/ade20k.py",
    "../_base_/linear_40k.py",
    "../_base_/dinov2_linear.py",
]

model = dict(encoder=dict(name="dinov2-large-14"))
