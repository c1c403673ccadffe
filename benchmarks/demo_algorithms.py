"""Summarises demos that ran several RL algorithms: python -m benchmarks.demo_algorithms RUNS/demo42 RUNS/demo7 ...

Each folder holds one seed's data, SFT and, as `omr demo --algorithm NAME` leaves them, RL runs and their evaluations:
rl*/ and eval/rl*/. Prints the table of docs/algorithms/demo.md, or of docs/async.md where runs differ in their mode,
and writes the numbers to results/demo_algorithms.json or, with --result NAME, to results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.environment import write_result
from data_pipeline.files import read_json

WINDOW = 20
"""First and last steps over which a metric is averaged."""


def summarize(evaluation: Path) -> dict[str, Any]:
    """Returns the numbers of one RL run: its evaluation, and its metrics at both ends."""
    root, run = evaluation.parents[1], evaluation.parents[1] / evaluation.name
    score, before = read_json(evaluation / "summary.json"), read_json(root / "eval/sft/summary.json")
    config, lines = read_json(run / "config.json"), (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        "seed": config["seed"],
        "algorithm": config["algorithm"]["name"],
        "mode": config["rollout"]["mode"],
        "correction": config["algorithm"]["correction"],
        "num_minibatches": config["algorithm"]["num_minibatches"],
        "steps": len(rows),
        "after_sft": {"accuracy": before["accuracy"], "ci95": before["ci95"]},
        "after_rl": {"accuracy": score["accuracy"], "ci95": score["ci95"]},
        "train_accuracy": average_ends(rows, "reward_accuracy"),
        "entropy": average_ends(rows, "entropy"),
        "truncated": average_ends(rows, "truncated"),
        "clip_fraction": average(rows, "clip_fraction"),
        "prompts_asked": average(rows, "groups_total"),
        "prompts_kept": average(rows, "groups_kept"),
    }


def average(rows: list[dict], name: str) -> float | None:
    """Returns the mean of a metric over the rows that have it."""
    values = [row[name] for row in rows if name in row]
    return round(fmean(values), 5) if values else None


def average_ends(rows: list[dict], name: str) -> list[float | None]:
    """Returns the means of a metric over the first and over the last steps."""
    return [average(rows[:WINDOW], name), average(rows[-WINDOW:], name)]


def table_row(run: dict) -> str:
    """Returns a row of the table in Markdown."""

    def percent(score: dict) -> str:
        low, high = score["ci95"]
        return f"{100 * score['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    clipped = "–" if run["clip_fraction"] is None else f"{100 * run['clip_fraction']:.2g} %"
    cells = [
        run["algorithm"] if run["mode"] == "sync" else f"{run['algorithm']}, {run['mode']}",
        str(run["seed"]),
        percent(run["after_sft"]),
        percent(run["after_rl"]),
        f"{100 * (run['after_rl']['accuracy'] - run['after_sft']['accuracy']):+.1f}",
        " → ".join(f"{value:.2f}" for value in run["train_accuracy"]),
        " → ".join(f"{value:.3f}" for value in run["entropy"]),
        f"{100 * run['truncated'][1]:.0f} %",
        clipped,
        f"{run['prompts_kept']:.0f} of {run['prompts_asked']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints a table of the demos' runs and writes their numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_algorithms")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--result", default="demo_algorithms")
    options = parser.parse_args()
    found = [path.parent for folder in options.folders for path in folder.glob("eval/rl*/summary.json")]
    runs = sorted(map(summarize, found), key=lambda run: (run["algorithm"], run["mode"], -run["seed"]))
    print("| algorithm | seed | after SFT | after RL | gain | training accuracy | entropy", end="")
    print(" | cut off | clipped | groups learned |")
    print("|---" * 10 + "|")
    print("\n".join(map(table_row, runs)))
    print(write_result(options.result, {"runs": runs}))


if __name__ == "__main__":
    main()
