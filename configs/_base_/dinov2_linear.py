"""DINOv2's linear segmentation head (its configs dinov2_vitl14_ade20k_linear and _voc2012_linear), for any encoder."""

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder"),
    heads=dict(
        segmentation=dict(
            head=dict(type="LinearHead", layers="last", norm=True),
            task=dict(type="Segmentation", average="all"),
            optim=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4),
        )
    ),
    inference=dict(mode="slide", crop=512, stride=341),
    canvas=(512, 512),
)
