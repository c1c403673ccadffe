"""Prompts: which questions are asked, and in which order."""
