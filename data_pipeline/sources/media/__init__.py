"""Reads the images and videos of a row: bytes, data URLs, and files that it names."""
