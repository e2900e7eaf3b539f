"""A miniature of a table's segmentation column: CamVid at 168 x 224 pixels, a linear head, minutes on two CPU cores.

    siglip2-dense train mini_camvid

5 epochs of 367 images, for any encoder. What scores here compare is whether everything works; for numbers that mean
something there is probe_camvid.
"""

_base_ = ["_base_/runtime.py", "_base_/camvid.py"]

model = dict(
    type="DenseProbe",
    encoder=dict(type="FrozenEncoder", name="efficientnet-lite0"),
    heads=dict(
        segmentation=dict(
            head=dict(type="LinearHead", layers="last", norm=True),
            task=dict(type="Segmentation"),
            optim=dict(type="AdamW", lr=3e-3, weight_decay=1e-4),
        )
    ),
)
train_dataloader = dict(dataset=dict(transforms=[dict(type="Resize", size=(168, 224))]))
val_dataloader = dict(dataset=dict(transforms=[dict(type="Resize", size=(168, 224), targets=False)]))
test_dataloader = dict(dataset=dict(transforms=[dict(type="Resize", size=(168, 224), targets=False)]))
train_cfg = dict(max_iters=230, val_interval=230, save_interval=46)
param_scheduler = [dict(type="OneCycleLR", total_steps=230, by_epoch=False)]  # to each head's lr and back
