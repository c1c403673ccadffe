"""Samples, shards, answer checking, packing and loading. Imports nothing else of this project."""
