"""Memory of each process of an RL run over many very small steps: python -m benchmarks.memory_growth --help.

    python -m benchmarks.memory_growth --model DEMO/sft/hf --shards DEMO/data/train --out DIR --steps 500

`omr rl demo` with two prompts of two responses a step, one engine and one trainer. Each --every steps the memory of
each kind of process is read, shared pages by their share and without those of files, and the slope is fitted after the
first --warm-up steps. What follows `--` goes to `omr rl`. Writes benchmarks/results/memory_growth.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.chaos.parts import Driver, adopting_orphans, collect_ended, end_all, list_children
from benchmarks.environment import digest_shards, write_result
from data_pipeline.scratch import scratch_folder
from data_pipeline.tables import text_table
from launch.ranks.launcher import sigterm_exits
from megatron_omr.train.metrics import read_json_lines

SMALL = {
    "prompts_per_step": 2,
    "sampling.n": 2,
    "trainers": 1,
    "engine.num_engines": 1,
    "engine.max_num_seqs": 8,
    "reward.checker.workers": 1,
    "checkpoint.every": 47,  # no reading falls on the fork that writes one
}
TITLES = {
    "ray::Engine": "engine",
    "ray::TrainerProcess": "trainer",
    "raylet": "raylet",
    "gcs_server": "gcs",
    "spawn_main": "verifier",
}
"""Parts of command lines, and the kinds of processes that have them; all others of the run are counted together."""
MB = 1e6


def parse_options(words: list[str]) -> argparse.Namespace:
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_growth")
    parser.add_argument("--model", required=True)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=50, help="steps between two readings")
    parser.add_argument(
        "--warm-up", type=int, default=100, help="steps before the readings that the slope is of"
    )
    options = parser.parse_args(words[:at])
    options.rest = words[at + 1 :]
    return options


def read_memory(driver: int) -> dict[str, float]:
    """Returns MB by kind of process, of the driver and its descendants."""
    sizes: dict[str, float] = {"driver": read_size(driver)}
    for process in list_children(driver):
        kind = find_kind(process)
        sizes[kind] = sizes.get(kind, 0.0) + read_size(process.pid)
    return sizes


def read_size(pid: int) -> float:
    """Returns the MB of a process that are no copy of a file, those shared with others by its share; 0 if it ended.

    Pages of libraries would change with what else runs on the machine.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(
        1024 * int(line.split()[1]) / MB for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
    )


def find_kind(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "other"
    return next((kind for title, kind in TITLES.items() if title in words), "other")


def sample(driver: Driver, run: Path, every: int) -> list[dict[str, float]]:
    """Returns a row of sizes for each `every` steps; the driver runs to its end meanwhile.

    Raises:
        RuntimeError: it failed.
    """
    rows: list[dict[str, float]] = []
    driver.start()
    while (code := driver.process.poll()) is None:
        collect_ended({driver.process.pid})
        path = run / "metrics.jsonl"
        step = len(read_json_lines(path)) if path.exists() else 0
        if step >= every * (len(rows) + 1):
            rows.append({"step": step, **read_memory(driver.process.pid)})
            print("  ".join(f"{name} {value:.1f}" for name, value in rows[-1].items()), flush=True)
        time.sleep(0.5)
    if code:
        raise RuntimeError(f"the run failed: {driver.last_words()}")
    return rows


def fit_slopes(rows: list[dict[str, float]], warm_up: int) -> dict[str, float]:
    """Returns KB a step by kind of process, fitted over the readings after the first steps."""
    later = [row for row in rows if row["step"] >= warm_up]
    steps = [row["step"] for row in later]
    kinds = [kind for kind in later[0] if kind != "step"]
    sizes = {kind: [row.get(kind, 0.0) for row in later] for kind in kinds}
    return {kind: round(1000 * float(np.polyfit(steps, sizes[kind], 1)[0]), 2) for kind in kinds}


def main(words: list[str]) -> None:
    options = parse_options(words)
    options.out.mkdir(parents=True, exist_ok=True)
    run = options.out / "run"
    shutil.rmtree(run, ignore_errors=True)
    values = {
        "run": run,
        "model": options.model,
        "shards": options.shards,
        "steps": options.steps,
        **SMALL,
    }
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "launch.cli", "rl", "demo", *words, *options.rest]
    started = time.monotonic()
    with scratch_folder():
        driver = Driver(command, os.environ, options.out / "log")
        try:
            with adopting_orphans():
                rows = sample(driver, run, options.every)
        finally:
            end_all(list_children(os.getpid()))
    slopes = fit_slopes(rows, options.warm_up)
    table = [
        [kind, f"{rows[0].get(kind, 0):.0f}", f"{rows[-1].get(kind, 0):.0f}", slopes[kind]] for kind in slopes
    ]
    print(text_table(["process", "MB at first", "MB at last", "KB a step"], table))
    result = {"steps": options.steps, "warm_up": options.warm_up, "options": options.rest}
    shown = {"seconds": round(time.monotonic() - started), "kb_per_step": slopes, "mb": rows}
    print(write_result("memory_growth", {**result, **shown}, digest_shards(options.shards)))


if __name__ == "__main__":
    with sigterm_exits():
        main(sys.argv[1:])
