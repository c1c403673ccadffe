"""Measurements against plain baselines, in one run each; results go to benchmarks/results."""
