"""Measures of a prediction: pure functions on tensors, and sums of them that add over images and ranks."""
