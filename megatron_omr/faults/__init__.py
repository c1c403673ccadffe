"""Notices ranks that fail and steps that go wrong."""
