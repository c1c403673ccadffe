"""Reads what an RL run wrote."""

from __future__ import annotations

import json
from pathlib import Path

SAME = ("step", "reward", "reward_format", "response_len_mean", "groups_kept", "policy_version")
"""Metrics that are equal in two runs of the same responses."""


def rows(run: Path | str, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (Path(run) / f"{name}.jsonl").read_text().splitlines()]


def responses(run: Path) -> list[list[str]]:
    return [[record["response"] for record in row["responses"]] for row in rows(run, "rollouts")]
