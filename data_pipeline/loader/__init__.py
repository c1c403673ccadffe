"""Reads shards into packed micro-batches."""
