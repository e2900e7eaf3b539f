"""50 000 steps of 8 images: warm-up and a half cosine, as an independent reproduction of the paper's table has it."""

train_cfg = dict(max_iters=50_000, val_interval=5_000, save_interval=1_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=7_500, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=50_000, eta_min=0.0, begin=0, end=50_000, by_epoch=False),
]
