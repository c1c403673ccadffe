"""WebDataset shards: format, index, writing, stages, validation."""
