"""The command line, recipes, local ranks, the demo and its report."""
