"""DINOv2's linear probe of PASCAL VOC 2012 (Oquab et al. 2024, Table 10, "lin."; its config ..._voc2012_linear).

    siglip2-dense train protocols/dinov2_linear_pascal

mIoU in the paper: DINOv2 S/14 81.1, B/14 82.5, L/14 82.1, g/14 83.0; OpenCLIP G/14 71.4. Every value is in the
published config, dinov2_vitl14_voc2012_linear; what is otherwise than there, see dinov2_linear_ade20k.
"""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/pascal.py",
    "../_base_/linear_40k.py",
    "../_base_/dinov2_linear.py",
]

model = dict(encoder=dict(name="dinov2-large-14"))
