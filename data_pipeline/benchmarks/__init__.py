"""Published benchmarks: their rows as questions in shards, how they are asked, and their numbers."""
