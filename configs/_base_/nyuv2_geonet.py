"""probe3d's NYUv2: GeoNet's frames to train on, the labelled test frames to score, both as the 480 x 480 in the middle.

A config says whether the targets are depth or normals.
"""

train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    dataset=dict(
        type="NYUv2GeoNet",
        split="trainval",
        transforms=[
            dict(type="CenterCrop", size=(480, 480)),
            dict(type="ColourJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, p=0.8),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="NYUv2Labelled", split="test", transforms=[dict(type="CenterCrop", size=(480, 480))]),
)
