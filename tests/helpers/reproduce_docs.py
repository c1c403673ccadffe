"""Fills in the table of docs/reproduce.md: the paper's rows beside the number of questions.

`python -m tests.helpers.reproduce_docs` writes the page anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.benchmarks.registry import BENCHMARKS
from launch.published.openmmreasoner import BASE, COLDSTART, MAIN, RL, TEXT

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
HEAD = "| benchmark | questions | base | cold start | RL | s.e. |\n|---|---|---|---|---|---|\n"
PROBLEMS = {"dynamath": 501, "wemath_testmini": 525}
"""What is right or wrong as a whole, where that is not a question."""


def build_table() -> str:
    """Returns the table: a row a benchmark, and the means."""
    rows, variance = [], 0.0
    for table in (MAIN, TEXT):
        for name in table.columns:
            count = BENCHMARKS[name].count
            scores = [table.rows[model].scores[name] for model in (BASE, COLDSTART, RL)]
            error = (scores[-1] * (100 - scores[-1]) / PROBLEMS.get(name, count)) ** 0.5
            numbers = " | ".join(f"{score:.1f}" for score in scores)
            rows.append(f"| `{name}` | {count:,} | {numbers} | {error:.1f} |")
            variance += error**2
        count = sum(BENCHMARKS[name].count for name in table.columns)
        means = " | ".join(f"**{table.mean(model):.1f}**" for model in (BASE, COLDSTART, RL))
        error = variance**0.5 / len(table.columns)
        rows.append(f"| **mean of {len(table.columns)}** | {count:,} | {means} | {error:.1f} |")
        variance = 0.0
    return HEAD + "".join(f"{row}\n" for row in rows)


def render(text: str) -> str:
    """Returns the page with the table as it is now."""
    return re.sub(rf"{re.escape(HEAD)}(?:\|.*\n)*", lambda _: build_table(), text) if HEAD in text else text


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
