"""Submission of runs to clusters: cluster files, checks, records, and jobs that run or ran."""
