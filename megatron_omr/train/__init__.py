"""Losses, trainer, the optimizer step, checkpoints and metrics."""
