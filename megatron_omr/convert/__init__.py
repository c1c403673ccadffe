"""Weights between Hugging Face and Megatron-Core: one table, two directions."""
