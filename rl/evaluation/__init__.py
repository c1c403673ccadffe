"""Evaluation: held-out questions are asked of engines, and their responses scored and summarised."""
