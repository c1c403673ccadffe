"""Sends the trainer's weights to the rollout engines through shared memory."""
