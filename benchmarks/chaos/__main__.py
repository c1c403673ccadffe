"""Kills and stops processes of an RL run at random moments, and checks that nothing of it shows in the result.

    python -m benchmarks.chaos --model DEMO/sft/hf --shards DEMO/data/train --out DIR --steps 150 --kills 56 --idle

DEMO is the folder of a demo that has done its SFT. `omr rl demo` runs twice, with a judge: undisturbed, unless DIR
holds that run already, and disturbed. Engine, trainer worker, verifier process, judge's server and driver get SIGKILL,
or SIGSTOP with a SIGCONT later or never, in an order and at moments drawn from --seed. The driver is started anew where
it has ended before it was done. What follows `--` goes to `omr rl`. Writes benchmarks/results/chaos.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.chaos.checks import compare_runs, find_new, list_entries
from benchmarks.chaos.disturb import Disturber, Done, Report
from benchmarks.chaos.parts import Driver, Judge, adopting_orphans
from benchmarks.chaos.plan import KINDS, NEVER, plan_strikes
from benchmarks.environment import digest_shards, write_result
from data_pipeline.scratch import scratch_folder
from data_pipeline.tables import text_table
from launch.ranks.launcher import sigterm_exits

DEADLINES = {
    "fault.beat": 1,
    "fault.silence": 20,
    "fault.timeout": 120,
    "engine.transfer_timeout": 20,
    "engine.start_timeout": 90,
    "engine.token_timeout": 20,
    "reward.judge.timeout": 60,
}
"""Seconds, instead of the minutes that real runs wait."""


def parse_options(words: list[str]) -> argparse.Namespace:
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--model", required=True)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--kills", type=int, default=56)
    parser.add_argument("--seed", type=int, default=0, help="0 draws one")
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--idle", action="store_true", help="whatever is new in /tmp or /dev/shm is of the run"
    )
    parser.add_argument("--only-undisturbed", action="store_true")
    options = parser.parse_args(words[:at])
    options.rest = words[at + 1 :]
    options.seed = options.seed or int.from_bytes(os.urandom(3))
    return options


def build_command(options: argparse.Namespace, run: Path, judge: Judge) -> list[str]:
    """Returns the command of a run."""
    values = {
        "run": run,
        "model": options.model,
        "shards": options.shards,
        "steps": options.steps,
        "checkpoint.every": options.every,
        "reward.judge.base_url": judge.url,
        **DEADLINES,
    }
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "launch.cli", "rl", options.recipe]
    return [*command, *words, "--reward.use_judge", *options.rest]


def run_undisturbed(options: argparse.Namespace, judge: Judge) -> Path:
    """Returns the folder of the undisturbed run, which is made unless it is there."""
    run = options.out / "undisturbed"
    if not (run / "hf" / "config.json").exists():
        started = time.monotonic()
        with (options.out / "undisturbed.log").open("ab") as log:
            command = build_command(options, run, judge)
            subprocess.run(command, stdout=log, stderr=log, check=True)
        print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
    return run


def mean_recovery(done: Sequence[Done]) -> dict[str, float]:
    """Returns by part and signal the mean seconds from a strike to the next step."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for one in done:
        if one.recovered is not None:
            seconds[f"{one.strike.kind} {one.strike.signal}"].append(one.recovered)
    return {way: round(fmean(found), 1) for way, found in seconds.items()}


def describe_done(done: Sequence[Done]) -> str:
    """Returns a table: each way with its number and how long it took until the next step."""
    by_way: dict[tuple[str, ...], list[Done]] = defaultdict(list)
    for one in done:
        after = one.strike.seconds
        later = "" if one.strike.signal == "SIGKILL" else "for good" if after == NEVER else "for a while"
        by_way[one.strike.kind, one.strike.signal, later].append(one)
    rows = []
    for way, made in sorted(by_way.items()):
        seconds = [one.recovered for one in made if one.recovered is not None]
        mean = f"{sum(seconds) / len(seconds):.1f}" if seconds else "-"
        rows.append([*way, str(len(made)), mean, f"{max(seconds, default=0):.1f}"])
    return text_table(["part", "signal", "", "times", "s to next step", "longest"], rows, left=3)


def main(words: list[str]) -> int:
    options = parse_options(words)
    print(f"seed {options.seed}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    before = list_entries()
    judge = Judge()
    try:
        # goes with all that is in it when another command starts, should this one be killed
        with scratch_folder() as temporary:
            undisturbed = run_undisturbed(options, judge)
            if options.only_undisturbed:
                return 0
            with adopting_orphans():
                report = disturb(options, judge)
            problems = report.problems
            problems += compare_runs(options.out / "disturbed", undisturbed, steps=options.steps)
            problems += [f"left in TMPDIR: {path.name}" for path in temporary.iterdir()]
    finally:
        judge.close()
    new = find_new(before)
    problems += [f"left: {path}" for path in new] if options.idle else []
    print(describe_done(report.done))
    print(f"{len(report.done)} strikes, {report.starts} starts, {report.seconds:.0f} s")
    print("\n".join(problems) or "nothing lost, nothing left")
    shown = {
        "steps": options.steps,
        "seed": options.seed,
        "checkpoint_every": options.every,
        "idle": options.idle,
    }
    result = {**shown, "options": options.rest, "new_files": new, **report.to_json()}
    result["mean_recovery"] = mean_recovery(report.done)
    print(write_result("chaos", result, digest_shards(options.shards)))
    return int(bool(problems))


def disturb(options: argparse.Namespace, judge: Judge) -> Report:
    """Runs the command with its strikes, in a folder of its own."""
    run = options.out / "disturbed"
    shutil.rmtree(run, ignore_errors=True)
    kinds = tuple(options.kinds.split(","))
    strikes = plan_strikes(options.kills, steps=options.steps, seed=options.seed, kinds=kinds)
    driver = Driver(build_command(options, run, judge), os.environ, options.out / "disturbed.log")
    driver.log.unlink(missing_ok=True)
    return Disturber(driver, judge, run, strikes).run()


if __name__ == "__main__":
    with sigterm_exits():
        sys.exit(main(sys.argv[1:]))
