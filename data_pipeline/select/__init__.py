"""Selects samples: filters, duplicates, contamination with benchmarks."""
