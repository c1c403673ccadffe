"""Converts whole folders in one process, a few megabytes at a time: Hugging Face to a Megatron checkpoint, and back."""
