"""DINOv3's linear depth probe on NYUv2 (Siméoni et al. 2025; eval/depth/configs/config-nyu.yaml).

    siglip2-dense train protocols/dinov3_linear_nyuv2

RMSE in metres in the paper: L/16 0.352, 7B/16 0.309. Every value is in the published config or the code it configures,
which has AdamW's first beta at 0 through the warm-up (eval/depth/schedulers.py).
"""

_base_ = ["../_base_/runtime.py", "../_base_/nyuv2.py", "../_base_/dinov2_depth.py"]

model = dict(
    encoder=dict(name="dinov3-large-16"),
    heads=dict(
        depth=dict(
            head=dict(type="LinearHead", layers="last", norm=True),  # with batch norm, without the class token
            optim=dict(lr=3e-4, betas=(0.85, 0.99), weight_decay=1e-4),
        )
    ),
)
train_cfg = dict(max_iters=38_400, val_interval=3_840, save_interval=800)
param_scheduler = [
    # Both begin at 0, for the source multiplies them, so that the learning rate peaks at 2.25e-4; it adds 3e-7 there.
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=12_800, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=38_400, eta_min=1.2e-8, begin=0, end=38_400, by_epoch=False),
    dict(type="ConstantMomentum", factor=1e-6, begin=0, end=12_800, by_epoch=False),  # 0; a factor of 0 has no way back
    dict(type="CosineAnnealingMomentum", T_max=25_600, eta_min=0.95, begin=12_800, end=38_400, by_epoch=False),
]
