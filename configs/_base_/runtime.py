"""What every run has."""

seed = 0
log_interval = 50
pictures = 8  # images of the validation set drawn at the end
vis_backends = [dict(type="TensorboardVisBackend")]
