"""Losses, the optimizer step, checkpoints and metrics."""
