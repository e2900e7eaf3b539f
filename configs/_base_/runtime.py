"""What every run has."""

seed = 0
log_interval = 50
pictures = 8  # images of the validation set drawn at the end
vis_backends = "tensorboard"  # where the curves go; also "wandb", "mlflow", "json", or a list of mmengine's backends
