"""A model of many engines under a virtual clock, for benchmarks/rollout_scale.py: no Ray, no vLLM, no threads."""
