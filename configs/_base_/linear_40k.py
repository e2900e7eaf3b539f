"""The schedule of DINOv2's linear segmentation heads: 40 000 steps, warm-up and decay multiplied."""

train_cfg = dict(max_iters=40_000, val_interval=4_000, save_interval=1_000)
param_scheduler = [
    # Both begin at 0: the source multiplies warm-up and decay, so that the learning rate peaks at 0.9625e-3.
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1_500, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=40_000, by_epoch=False),
]
