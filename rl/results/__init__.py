"""Evaluations on disk: compared question by question, and cut at token budgets."""
