"""probe3d's ten epochs on NYUv2, of 30,914 images, 8 a step: the code has 8 on each GPU, of how many is unpublished."""

train_cfg = dict(max_iters=38_640, val_interval=3_864, save_interval=1_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=5_796, by_epoch=False),  # 1.5 epochs
    # 0.99 cos(pi t / 2) + 0.01, a quarter of a wave: the upper half of one that would go on to -0.98
    dict(type="CosineAnnealingLR", T_max=65_688, eta_min_ratio=-0.98, begin=5_796, end=38_640, by_epoch=False),
]
