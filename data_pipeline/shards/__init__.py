"""Writes, indexes, reads and validates WebDataset shards."""
