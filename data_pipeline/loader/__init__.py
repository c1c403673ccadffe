"""Shards to packed micro-batches."""
