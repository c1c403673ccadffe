"""Encodes samples as tokens and patches."""
