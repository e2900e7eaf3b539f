"""NAVI v1 as probe3d cuts it: one object in a square crop of 512 pixels, depth relative to the object.

Trained on the multi-view images and scored on the wild ones, every 4th of a sorted list, at the size that the object's
crop has in an image of short side 512; probe3d scores all at 512, with targets from the nearest pixel.
"""

train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    dataset=dict(
        type="NAVI",
        split="train",
        transforms=[
            dict(type="Resize", size=(512, 512)),
            dict(type="ColourJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, p=0.8),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(type="NAVI", split="test", transforms=[dict(type="Resize", size=(512, 512), targets=False)]),
)
