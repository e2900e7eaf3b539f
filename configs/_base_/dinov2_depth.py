"""How DINOv2's NYUv2 depth heads are trained and scored (its config dinov2_vitl14_nyu_dpt); a config names the head."""

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder"),
    heads=dict(
        depth=dict(
            # DINOv2 also has its gradient loss, which is 0 for its two images on a GPU
            task=dict(type="Depth", min_depth=1e-3, max_depth=10.0, sig=1.0, warm_up=100, crop="eigen"),
            optim=dict(type="AdamW", lr=1e-4, betas=(0.95, 0.999), weight_decay=0.01, clip_norm=35),
        )
    ),
    inference=dict(mode="whole", flip=True),
)
