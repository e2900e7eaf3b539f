"""CamVid, 11 classes, through the general folder data set: images resized to 336 x 448, scored at 360 x 480.

Lay it out as images/{train,val,test}/NAME.jpg, labels/{train,val,test}/NAME.png (11 = void) and classes.txt.
"""

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        type="ImageFolder",
        root="data/camvid",
        split="train",
        ignore=11,
        transforms=[dict(type="Resize", size=(336, 448))],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        type="ImageFolder",
        root="data/camvid",
        split="val",
        ignore=11,
        transforms=[dict(type="Resize", size=(336, 448), targets=False)],
    ),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        type="ImageFolder",
        root="data/camvid",
        split="test",
        ignore=11,
        transforms=[dict(type="Resize", size=(336, 448), targets=False)],
    ),
)
