"""Times a step of our RL loop and of TRL's GRPOTrainer, both with GSPO on the demo's SFT model, prompts and rewards.

Usage: python -m benchmarks.bench_rl_step [DEMO]: DEMO is a folder that `make demo` or `omr demo --out` has filled.
TRL runs in .venv-peers (`make test-peers` fills it) with two threads and transformers' generation: its vLLM mode needs
a GPU. Its micro-batch is the fastest of those in MICRO_BATCHES. A ratio above 1 means that ours is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import psutil
from PIL import Image

from benchmarks.environment import digest_shards, write_result
from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.files import to_json
from data_pipeline.shards.format import read_sample
from launch.recipes.rl_demo import demo
from rl.config import RLConfig
from rl.prompts.stream import PromptStream, load_prompt_limits

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers/bin/python"
STEPS, WARM_UP = 24, 4
TRL_STEPS, TRL_WARM_UP = 4, 1
MICRO_BATCHES = (32, 128)
THREADS = 2
MODES = ("sync", "one_step_off", "async")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over the steps after the first ones."""

    seconds: float  # a step
    phases: Mapping[str, float]
    cores_busy: float | None  # share of the machine's processor time that was used meanwhile
    response_len: float  # tokens, mean


def time_ours(config: RLConfig, mode: str) -> Timing:
    """Runs the demo's RL for STEPS steps."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "run": f"{folder}/rl",
            "model": config.model,
            "shards": config.shards,
            "steps": STEPS,
            "rollout.mode": mode,
            "checkpoint.every": 10 * STEPS,
            "algorithm.correction": "none" if mode == "sync" else "token",
        }
        command = [sys.executable, "-m", "launch.cli", "rl", "demo"]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        metrics = Path(folder) / "rl/metrics.jsonl"
        busy = measure_busy(process, metrics)
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()][WARM_UP:]
    names = {name for row in rows for name in row if name.startswith("seconds_")} - {"seconds_step"}
    return Timing(
        seconds=median(row["seconds_step"] for row in rows),
        phases={
            name.removeprefix("seconds_"): median(row.get(name, 0.0) for row in rows)
            for name in sorted(names)
        },
        cores_busy=busy,
        response_len=median(row["response_len_mean"] for row in rows),
    )


def measure_busy(process: subprocess.Popen[bytes], metrics: Path) -> float:
    """Returns the share of processor time used between the first steps and the last one."""
    wait_for_steps(process, metrics, WARM_UP)
    before = psutil.cpu_times()
    wait_for_steps(process, metrics, STEPS - 1)
    used = [now - then for now, then in zip(psutil.cpu_times(), before, strict=True)]
    spent = dict(zip(before._fields, used, strict=True))
    total = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)
    return 1 - (spent["idle"] + spent.get("iowait", 0.0)) / total


def wait_for_steps(process: subprocess.Popen[bytes], metrics: Path, steps: int) -> None:
    """Waits until so many steps have been written, or the process has ended."""
    while process.poll() is None:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= steps:
            return
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


def time_trl(config: RLConfig, folder: Path, micro_batch_size: int) -> Timing:
    """Runs TRL on the prompts in `folder`."""
    job = {
        "model": config.model,
        "threads": THREADS,
        "prompts_per_step": config.prompts_per_step,
        "n": config.sampling.n,
        "max_tokens": config.sampling.max_tokens,
        "steps": TRL_STEPS,
        "micro_batch_size": micro_batch_size,
        "lr": config.optim.lr,
    }
    (folder / "job.json").write_text(to_json(job))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    command = [str(PEERS), "-m", "benchmarks.peer_rl_step", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    steps = json.loads((folder / "trl.json").read_text())["steps"][TRL_WARM_UP:]
    seconds, generate = median(s["seconds"] for s in steps), median(s["generate"] for s in steps)
    return Timing(
        seconds=seconds,
        phases={"generate": generate, "train": seconds - generate},  # with rewards and old logprobs
        cores_busy=None,
        response_len=median(s["response_len"] for s in steps),
    )


def write_prompts(config: RLConfig, folder: Path) -> None:
    """Writes the first prompts that our loop asks, with their images in the size that models see."""
    encoder = ChatEncoder(load_prompt_limits(config))
    rows = []
    for number, prompt in enumerate(PromptStream(config).take(TRL_STEPS * config.prompts_per_step)):
        sample = read_sample(config.shards, prompt.ref)
        names = []
        for image in encoder.engine_prompt(sample)[1]:
            names.append(f"{number}-{len(names)}.png")
            Image.fromarray(image).save(folder / names[-1])
        turns = [{"role": m.role, "content": m.content} for m in sample.messages if m.role != "assistant"]
        rows.append({"messages": turns, "images": names, "answer": prompt.answer})
    (folder / "prompts.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))


def compare(ours: Mapping[str, Timing], trl: Timing) -> dict[str, dict[str, float]]:
    """Returns how many times as long TRL takes, for a step and, in turn, for each of its phases."""
    ratios = {mode: {"step": trl.seconds / timing.seconds} for mode, timing in ours.items()}
    ratios["sync"] |= {name: seconds / ours["sync"].phases[name] for name, seconds in trl.phases.items()}
    return ratios


def main(arguments: Sequence[str] = ()) -> None:
    """Runs both and prints a table."""
    root = Path(arguments[0] if arguments else "runs/demo").resolve()
    if not (root / "sft/hf").is_dir() or not PEERS.is_file():
        print(f"left out: it needs {root}/sft/hf (`make demo`) and {PEERS} (`make test-peers`)")
        return
    config = replace(demo(str(root)), shards=str(root / "data/train"))
    ours = {mode: time_ours(config, mode) for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        write_prompts(config, Path(folder))
        theirs = {size: time_trl(config, Path(folder), size) for size in MICRO_BATCHES}
    trl = min(theirs.values(), key=lambda timing: timing.seconds)
    ratios = compare(ours, trl)
    for name, timing in {**ours, "TRL": trl}.items():
        phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in timing.phases.items())
        busy = "" if timing.cores_busy is None else f"; cores {timing.cores_busy:.0%} busy"
        print(f"{name:13} {timing.seconds:6.2f} s a step ({phases}){busy}")
    print(
        "times as fast as TRL:",
        to_json({mode: {k: round(v, 2) for k, v in r.items()} for mode, r in ratios.items()}),
    )
    write_result(
        "rl_step",
        {
            "ours": {mode: vars(timing) for mode, timing in ours.items()},
            "trl": {str(size): vars(timing) for size, timing in theirs.items()},
            "ratio": ratios,
        },
        digest_shards(config.shards),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
