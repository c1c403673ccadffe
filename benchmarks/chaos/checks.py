"""Compares a disturbed run with an undisturbed one, and finds what was left on the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipeline.files import read_json
from megatron_omr.train.metrics import read_json_lines

PLACES = (Path("/tmp"), Path("/dev/shm"))
SAME = ("step", "reward", "reward_accuracy", "response_len_mean", "policy_version", "groups_kept")
"""Metrics that a fault does not change where rollouts are those of the weights that learn from them."""


def compare_runs(disturbed: Path, undisturbed: Path, *, steps: int) -> Iterator[str]:
    """Yields what is wrong: steps, prompts and versions in any mode; in sync mode also responses and weights."""
    rows = {run: read_json_lines(run / "metrics.jsonl") for run in (disturbed, undisturbed)}
    if [row["step"] for row in rows[disturbed]] != list(range(steps)):
        yield f"metrics.jsonl has steps {[row['step'] for row in rows[disturbed]]}"
    yield from _compare_trained(disturbed, undisturbed, steps)
    if _mode(disturbed) != "sync":
        return
    for one, other in zip(rows[disturbed], rows[undisturbed], strict=False):
        if differing := [name for name in SAME if one.get(name) != other.get(name)]:
            yield f"step {one['step']} differs in {', '.join(differing)}"
    if _responses(disturbed) != _responses(undisturbed):
        yield "responses or rewards differ"
    yield from _compare_weights(disturbed / "hf", undisturbed / "hf")


def _compare_trained(disturbed: Path, undisturbed: Path, steps: int) -> Iterator[str]:
    """Yields where the prompts that were trained on, or the versions of their tokens, are not as they should be."""
    files = [run / "trained.jsonl" for run in (disturbed, undisturbed)]
    seen, wanted = (read_json_lines(file) if file.exists() else [] for file in files)
    if not seen:
        yield "there is no trained.jsonl"
        return
    if [row["step"] for row in seen] != list(range(steps)):
        yield f"trained.jsonl has steps {[row['step'] for row in seen]}"
    ids = [[[group["id"] for group in row["groups"]] for row in rows] for rows in (seen, wanted)]
    if ids[0] != ids[1]:
        yield "other prompts were trained on, or in other steps"
    config = read_json(disturbed / "config.json")
    bound = config.get("rollout", {}).get("max_staleness", 0) if _mode(disturbed) == "async" else 0
    bound = 1 if _mode(disturbed) == "one_step_off" else bound
    carries = config["algorithm"]["dynamic_sampling"]["enabled"]
    for row in seen:
        for group in row["groups"]:
            oldest, newest = group["oldest"], group["newest"]
            if newest > row["step"] or oldest > newest or (row["step"] - oldest > bound and not carries):
                yield f"step {row['step']} trained on {group['id']} of versions {oldest} to {newest}"


def _mode(run: Path) -> str:
    return read_json(run / "config.json").get("rollout", {}).get("mode", "sync")


def _responses(run: Path) -> list[list[tuple[str, float]]]:
    rows = read_json_lines(run / "rollouts.jsonl")
    return [[(one["response"], one["reward"]) for one in row["responses"]] for row in rows]


def _compare_weights(one: Path, other: Path) -> Iterator[str]:
    files = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in (one, other)]
    if files[0] != files[1] or not files[0]:
        yield f"hf/ holds {files[0]}, undisturbed {files[1]}"
    for name in files[0]:
        if (one / name).read_bytes() != (other / name).read_bytes():
            yield f"hf/{name} differs from the undisturbed run's"


def list_entries() -> dict[Path, float]:
    """Returns what is in /tmp and /dev/shm, with the times at which it was changed."""
    found: dict[Path, float] = {}
    for place in PLACES:
        for entry in os.scandir(place):
            found[Path(entry.path)] = entry.stat(follow_symlinks=False).st_mtime
    return found


def find_new(before: Mapping[Path, float]) -> list[str]:
    """Returns what has come into /tmp and /dev/shm since then."""
    return sorted(str(path) for path in list_entries().keys() - before.keys())
