"""Fills in the table of docs/reproduce.md: the paper's rows beside the number of questions.

`python -m tests.helpers.reproduce_docs` writes the page anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.benchmarks.registry import BENCHMARKS
from launch.published.openmmreasoner import BASE, COLDSTART, MAIN, RL, TEXT

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
HEAD = "| benchmark | questions | base | cold start | RL | s.e. |\n|---|---|---|---|---|---|\n"
PROBLEMS = {"dynamath": 501, "wemath_testmini": 525}
"""What is right or wrong as a whole, where that is not a question."""
SHARED = {("mathvision_test", "mathvision_testmini"): 304, ("mmmu_pro_standard", "mmmu_pro_vision"): 1_730}
"""Questions that two columns have in common."""


def build_table() -> str:
    """Returns the table: a row a benchmark, and the means."""
    rows = []
    for table in (MAIN, TEXT):
        errors = dict[str, float]()
        for name in table.columns:
            count = BENCHMARKS[name].count
            scores = [table.rows[model].scores[name] for model in (BASE, COLDSTART, RL)]
            errors[name] = (scores[-1] * (100 - scores[-1]) / PROBLEMS.get(name, count)) ** 0.5
            numbers = " | ".join(f"{score:.1f}" for score in scores)
            rows.append(f"| `{name}` | {count:,} | {numbers} | {errors[name]:.1f} |")
        count = sum(BENCHMARKS[name].count for name in table.columns)
        means = " | ".join(f"**{table.mean(model):.1f}**" for model in (BASE, COLDSTART, RL))
        rows.append(
            f"| **mean of {len(table.columns)}** | {count:,} | {means} | {error_of_mean(errors):.1f} |"
        )
    return HEAD + "".join(f"{row}\n" for row in rows)


def error_of_mean(errors: Mapping[str, float]) -> float:
    """Returns the standard error of the mean of columns with these errors.

    A question that two columns share is taken to be right in both or in neither: each other case has a smaller error.
    """
    variance = sum(error**2 for error in errors.values())
    for (one, other), count in SHARED.items():
        if one in errors and other in errors:
            shared = count / (BENCHMARKS[one].count * BENCHMARKS[other].count) ** 0.5  # correlation
            variance += 2 * shared * errors[one] * errors[other]
    return variance**0.5 / len(errors)


def render(text: str) -> str:
    """Returns the page with the table as it is now."""
    return re.sub(rf"{re.escape(HEAD)}(?:\|.*\n)*", lambda _: build_table(), text) if HEAD in text else text


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
