"""The whole data recipe."""
