"""`omr eval`: a model's scores on published benchmarks beside the paper's, or on held-out questions of a recipe."""
