"""Samples to tokens and patches."""
