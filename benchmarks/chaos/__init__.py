"""Kills and stops the processes of an RL run at random moments: python -m benchmarks.chaos."""
