"""probe3d's ten epochs on NAVI, of 2,024 images, 8 a step: the code has 8 on each GPU, of how many is unpublished."""

train_cfg = dict(max_iters=2_530, val_interval=2_530, save_interval=506)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=380, by_epoch=False),  # 1.5 epochs
    # 0.99 cos(pi t / 2) + 0.01, a quarter of a wave: the upper half of one that would go on to -0.98
    dict(type="CosineAnnealingLR", T_max=4_300, eta_min_ratio=-0.98, begin=380, end=2_530, by_epoch=False),
]
