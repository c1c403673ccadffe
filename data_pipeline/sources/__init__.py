"""Public corpora and your own rows to samples."""
