"""Answers of a served teacher to questions in shards."""
