"""The schedule of DINOv2's depth heads: 38 400 steps, one cycle of learning rate and of AdamW's first beta."""

train_cfg = dict(max_iters=38_400, val_interval=3_840, save_interval=800)
param_scheduler = [
    # Both begin at 0: the source multiplies warm-up and cosine, so that the learning rate peaks at 0.75e-4.
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=12_800, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=38_400, eta_min=1e-12, begin=0, end=38_400, by_epoch=False),
    # from 0.95 to 0.85 and back, the default of mmcv 1.x for policy="OneCycle"
    dict(type="CosineAnnealingMomentum", T_max=11_520, eta_min=0.85, begin=0, end=11_520, by_epoch=False),
    dict(type="CosineAnnealingMomentum", T_max=26_880, eta_min=0.95, begin=11_520, end=38_400, by_epoch=False),
]
