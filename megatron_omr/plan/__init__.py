"""Memory and time of a layout before it runs: formulas, checked against the real model (docs/plan.md)."""
