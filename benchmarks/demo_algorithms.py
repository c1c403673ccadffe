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

from benchmarks.environment import digest_shards, write_result
from data_pipeline.files import read_json

WINDOW = 20
"""First and last steps over which a metric is averaged."""


def summarize(evaluation: Path) -> dict[str, Any]:
    """Returns the numbers of one RL run: its evaluation, and its metrics at both ends."""
    root, run = evaluation.parents[1], evaluation.parents[1] / evaluation.name
    score, before = read_json(evaluation / "summary.json"), read_json(root / "eval/sft/summary.json")
    config, lines = read_json(run / "config.json"), (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    asked, kept = average(rows, "groups_total"), average(rows, "groups_kept")
    return {
        "seed": config["seed"],
        "algorithm": config["algorithm"]["name"],
        "mode": config["rollout"]["mode"],
        "correction": config["algorithm"]["correction"],
        "num_minibatches": config["algorithm"]["num_minibatches"],
        "steps": len(rows),
        "after_sft": {"accuracy": before["accuracy"], "ci95": before["ci95"]},
        "after_rl": {"accuracy": score["accuracy"], "ci95": score["ci95"]},
        "gain": score["accuracy"] - before["accuracy"],
        "train_accuracy": average_ends(rows, "reward_accuracy"),
        "entropy": average_ends(rows, "entropy"),
        "truncated": average_ends(rows, "truncated"),
        "clip_fraction": average(rows, "clip_fraction"),
        "prompts_asked": asked,
        "prompts_kept": kept,
        "asked_over_kept": round(asked / kept, 2) if asked and kept else None,
    }


def mean_gains(runs: list[dict]) -> dict[str, float]:
    """Returns the mean gain of each algorithm, or of each mode where only that differs."""
    varied = "mode" if len({run["algorithm"] for run in runs}) == 1 else "algorithm"
    return {
        name: fmean(run["gain"] for run in runs if run[varied] == name)
        for name in sorted({r[varied] for r in runs})
    }


def average(rows: list[dict], name: str) -> float | None:
    """Returns the mean of a metric over the rows that have it."""
    values = [row[name] for row in rows if name in row]
    return round(fmean(values), 5) if values else None


def average_ends(rows: list[dict], name: str) -> list[float | None]:
    """Returns the means of a metric over the first and over the last steps."""
    return [average(rows[:WINDOW], name), average(rows[-WINDOW:], name)]


def table_row(number: int, run: dict, result: str) -> str:
    """Returns a row of the table in Markdown, with a link to the run's part of the card."""

    def percent(score: dict) -> str:
        low, high = score["ci95"]
        return f"{100 * score['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    clipped = "–" if run["clip_fraction"] is None else f"{100 * run['clip_fraction']:.2g} %"
    name = run["algorithm"] if run["mode"] == "sync" else f"{run['algorithm']}, {run['mode']}"
    cells = [
        f"[{name}](../../benchmarks/results/{result}.json#/runs/{number})",
        str(run["seed"]),
        percent(run["after_sft"]),
        percent(run["after_rl"]),
        f"{100 * run['gain']:+.1f}",
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
    print("\n".join(table_row(number, run, options.result) for number, run in enumerate(runs)))
    data = digest_shards(*(folder / "data" for folder in options.folders))
    gains = mean_gains(runs)
    differences = {f"{name} - sync": gain - gains["sync"] for name, gain in gains.items() if "sync" in gains}
    print(
        write_result(options.result, {"runs": runs, "mean_gain": gains, "mean_difference": differences}, data)
    )


if __name__ == "__main__":
    main()
