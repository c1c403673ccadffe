"""Writes what lmms-eval gives for fixed responses to tests/golden/lmms_eval.json, for the tests that do not have it.

.venv-peers/bin/python -m tests.peers.write_lmms_golden
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from tests.helpers.eval_cases import GOLDEN, digest
from tests.helpers.eval_questions import SOURCES
from tests.peers.lmms_tasks import Scored, score


def main() -> None:
    lines = [f"  {json.dumps(name)}: {json.dumps(record(name, score(name)))}" for name in SOURCES]
    versions = {name: version(name) for name in ("lmms-eval", "math-verify")}
    benchmarks = ",\n".join(lines)
    GOLDEN.write_text(f'{{\n "versions": {json.dumps(versions)},\n "benchmarks": {{\n{benchmarks}\n }}\n}}\n')


def record(name: str, scored: Scored) -> dict[str, Any]:
    """Returns what lmms-eval says; the accuracies of a question's responses as a word of digits."""
    return {
        "task": scored.task,
        "digest": digest(name, scored.prompts),
        "numbers": {metric: round(number, 9) for metric, number in scored.numbers.items()},
        "accuracies": " ".join("".join(f"{value:.0f}" for value in row) for row in scored.accuracies),
    }


if __name__ == "__main__":
    main()
