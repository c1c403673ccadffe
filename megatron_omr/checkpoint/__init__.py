"""Checkpoints: written in the background without gathering, verified, read by any layout."""
