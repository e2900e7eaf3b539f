"""CAT-Seg on towers that begin at random, for 64 pixels; a config says patch and width, and the grid that follows."""

model = dict(
    type="CATSeg",
    encoder=dict(
        type="FrozenEncoder",
        name="clip-base-16-224",
        weights="random",
        trainable="all",
        model_args=dict(img_size=64, depth=3, num_heads=3, num_classes=64),
    ),
    text=dict(
        model_args=dict(embed_dim=64, width=64, heads=2, layers=1, context_length=16),
        cache=False,
        trainable=["q", "k", "v", "proj", "fc1", "fc2"],
    ),
    encoder_optim=dict(lr_mult=1.0),
    clip_norm=0.1,
    heads=dict(
        segmentation=dict(
            head=dict(type="CATSegHead", residual="own", blocks=1, pool=1, direct=True),
            task=dict(type="OpenVocabulary", templates="name", ignored="masked"),
            optim=dict(type="AdamW", lr=5e-4, weight_decay=1e-4, norm_decay=0.0),
        )
    ),
)
