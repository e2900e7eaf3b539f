"""DINOv3's linear probe of ADE20K (Siméoni et al. 2025; eval/segmentation/configs/config-ade20k-linear-training.yaml).

    siglip2-dense train protocols/dinov3_linear_ade20k

mIoU in the paper: L/16 54.9, 7B/16 55.9. Every value is in the published config or the code it configures. Otherwise
than there: the hue of the distortion moves by a tenth of the circle at most, as in mmsegmentation (there by half of
it), and during the 1,500 steps of warm-up the learning rate is up to 3 % higher (there the decay is linear until then).
"""

_base_ = ["../_base_/runtime.py", "../_base_/ade20k.py", "../_base_/dinov2_linear.py"]

model = dict(
    encoder=dict(name="dinov3-large-16"),
    heads=dict(
        segmentation=dict(
            head=dict(dropout=0.1),  # models/heads/linear_head.py: of whole channels, before the batch norm
            task=dict(average="valid"),  # torch's cross-entropy
            optim=dict(weight_decay=1e-3),
        )
    ),
)
train_cfg = dict(max_iters=40_000, val_interval=5_000, save_interval=1_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1_500, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=40_000, eta_min=0.0, begin=0, end=40_000, by_epoch=False),
]
