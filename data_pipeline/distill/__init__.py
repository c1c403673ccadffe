"""Responses of a served teacher to the questions in shards, and samples made of them."""
