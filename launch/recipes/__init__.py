"""Named configurations: plain functions that return frozen dataclasses."""
