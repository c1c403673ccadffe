"""The ranks of a run: who they are, and how those of this machine start."""
