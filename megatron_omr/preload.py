"""Imports what every training process needs, so that a fork server pays for it once."""


