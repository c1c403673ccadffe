"""The trainer's weights to the rollout engines."""
