"""Which samples are kept: filters, duplicates, benchmarks."""
