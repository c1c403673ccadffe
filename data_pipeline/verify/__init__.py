"""The answer checker."""
