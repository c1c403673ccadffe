"""Pages about evaluations: one with its failures and budgets, several side by side."""
