"""200 Kinect frames of one kitchen (7-Scenes), 240 x 320 pixels: the first 150 to train on, the others to score.

Normals are planes fitted to 9 x 9 pixels of depth. probe_kitchen says how the folder is laid out.
"""

train_dataloader = dict(
    batch_size=6,
    num_workers=1,
    dataset=dict(
        type="RGBDFolder",
        root="data/sevenscenes_redkitchen",
        split="train",
        targets=("depth", "normals"),
        invalid=(65535,),
        window=9,
        transforms=[dict(type="RandomFlip", p=0.5)],
    ),
)
val_dataloader = dict(
    batch_size=5,
    num_workers=1,
    dataset=dict(
        type="RGBDFolder",
        root="data/sevenscenes_redkitchen",
        split="test",
        targets=("depth", "normals"),
        invalid=(65535,),
        window=9,
    ),
)
