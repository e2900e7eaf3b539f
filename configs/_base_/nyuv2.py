"""NYUv2 depth, and DINOv2's protocol on it (its config dinov2_vitl14_nyu_dpt): the lists of BTS, crops of 416 x 544.

Scored at 480 x 640 in the crop of Eigen et al., depths between 1e-3 and 10 m, averaged with the mirrored image.
"""

train_dataloader = dict(
    batch_size=16,  # 2 on each of 8 GPUs there
    num_workers=8,
    dataset=dict(
        type="NYUv2",
        split="train",
        transforms=[
            dict(type="Crop", top=45, left=43, height=427, width=565),  # the white frame
            dict(type="RandomRotation", degrees=2.5, p=0.5),
            dict(type="RandomFlip", p=0.5),
            dict(type="RandomCrop", size=(416, 544)),
            dict(type="GammaJitter", p=0.5),
        ],
    ),
)
val_dataloader = dict(batch_size=1, num_workers=4, dataset=dict(type="NYUv2", split="test"))
