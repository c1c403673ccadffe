"""Measures a model on held-out samples while it is trained."""
