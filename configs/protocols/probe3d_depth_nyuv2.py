"""probe3d's depth on NYUv2 (El Banani et al. 2024; configs/depth_training.yaml with return_multilayer=True).

    siglip2-dense train protocols/probe3d_depth_nyuv2
    siglip2-dense train protocols/probe3d_depth_nyuv2 --encoder siglip-large-16-384 \
        --cfg-options model.heads.depth.head.pooled=none

RMSE in metres in the paper: DINOv2 L/14 0.3086; CLIP L/14 0.9445. Every value is in the published configs or the code
they configure; the paper's learning rate, 1e-3, is another than the code's. Only DINOv2 has the class token beside each
map there. What is not there: RandomResizedCrop of half of the images, which this package does not have; pixels are
normalised by each encoder's own statistics (there ImageNet's for all), edges of maps are half-pixel (there
align_corners=True), padding is cut off again, and of 27 blocks the two in the middle are the 14th and 21st (there the
13th and 18th).
"""

_base_ = ["../_base_/runtime.py", "../_base_/nyuv2_geonet.py", "../_base_/probe3d_nyuv2.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="dinov2-base-14"),
    heads=dict(
        depth=dict(
            head=dict(type="Probe3DHead", layers="even4", norm=False, pooled="concat", width=512),
            task=dict(type="Depth", min_depth=1e-3, max_depth=10.0, bins=256, epsilon=0.1, sig=10.0, gradient=0.5),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=0.01),
        )
    ),
)
train_dataloader = dict(dataset=dict(targets=("depth",)))
val_dataloader = dict(dataset=dict(targets=("depth",)))
