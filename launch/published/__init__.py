"""Numbers of papers, as reference beside those of a run."""
