"""The tables of parameters: the language model, and one file for each kind of vision tower."""
