"""The command that compares our model with others."""
