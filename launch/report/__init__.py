"""HTML pages of runs and of samples."""
