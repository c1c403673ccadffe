"""Compares the trainer's logprobs with those of a vLLM engine."""
