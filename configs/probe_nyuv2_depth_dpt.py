"""NYUv2 depth: a DPT head on a frozen encoder, for comparison with the DINOv2 and probe3d papers.

    siglip2-dense train probe_nyuv2_depth_dpt --encoder dinov2-large-14

The SigLIP 2 paper's column NYUv2 depth is a linear head's (see probe_nyuv2_depth.py): it has no number for this one.
RMSE in metres of the DINOv2 paper's DPT heads, to reach first: DINOv2 S/14 0.356, B/14 0.317, L/14 0.293, g/14 0.279,
OpenCLIP G/14 0.414; DINOv2 L/14 0.309 with probe3d's head and crops. The head is that of TIPS: 256 wide, the pooled
vector read out at every layer, maps with the final norm, 256 bins.
"""

_base_ = ["_base_/runtime.py", "_base_/nyuv2.py", "_base_/depth_38k.py", "_base_/dinov2_depth.py"]

model = dict(
    encoder=dict(name="siglip2-so400m-14-384"),
    heads=dict(
        depth=dict(head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=256)),
    ),
)
