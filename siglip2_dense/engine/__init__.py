"""Training and evaluation on mmengine's runner."""
