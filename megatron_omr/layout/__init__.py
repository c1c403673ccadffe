"""The layout of a model over processes."""
