"""The command line, recipes, local and cluster executors, the demo and its report."""
