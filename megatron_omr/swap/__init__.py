"""Exchanges the weights of a trainer, and moves it off its device and back."""
