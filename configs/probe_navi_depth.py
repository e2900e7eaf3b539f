"""NAVI depth of single objects: a DPT head on a frozen encoder (SigLIP 2 paper, Table 2, column NAVI depth).

    siglip2-dense train probe_navi_depth

RMSE in the paper, of depths scaled to 0.01 ... 1 within each object (its values fit no other reading):

    clip-large-14-224      0.073
    siglip-so400m-14-224   0.083
    siglip2-so400m-14-224  0.067
    siglip-so400m-14-384   0.069
    siglip2-so400m-14-384  0.064

Reach these first, they have public code: probe3d's DINOv2 B/14 0.0763, L/14 0.0721. The paper names neither head nor
loss; the head is that of TIPS, the losses are probe3d's. Only an object's farthest pixel, at exactly 1, is not scored.
"""

_base_ = ["_base_/runtime.py", "_base_/navi.py", "_base_/probe_50k.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="siglip2-so400m-14-384"),
    heads=dict(
        depth=dict(
            head=dict(type="DPTHead", layers="even4", norm=True, pooled="readout", width=256),
            task=dict(type="Depth", min_depth=1e-3, max_depth=1.0, sig=10.0, gradient=0.5, unit="relative"),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01),
        )
    ),
)
train_dataloader = dict(dataset=dict(targets=("depth",), depth="relative"))
val_dataloader = dict(dataset=dict(targets=("depth",), depth="relative"))
