"""Curates whole data recipes, from corpora to a mixture."""
