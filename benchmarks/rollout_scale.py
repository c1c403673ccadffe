"""Drives the rollout manager and the modes with modelled engines under a virtual clock: 1,000 engines on one core.

- overhead: processor time and memory of the driver for prompts in flight, against the time in which engines generate
- utilisation: how engines and trainer spend their time in each mode, and how old the tokens are that are trained on
- order: training in the order of asking against training first on what is ready
- deaths: the same where engines die

benchmarks/scale/speed.py says what is assumed of engines and lengths; nothing here was measured on a GPU. `make bench`
runs a small size; `python -m benchmarks.rollout_scale --full` the published one, in some minutes, which writes
benchmarks/results/rollout_scale.json and docs/rollout_scale.svg.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result
from benchmarks.scale.cluster import GROUP, ClusterConfig
from benchmarks.scale.overhead import measure_memory, measure_overhead, measure_waiting
from benchmarks.scale.plot import draw_utilisation
from benchmarks.scale.training import Setting, Training, measure
from data_pipeline.tables import text_table

PLOT = Path(__file__).parents[1] / "docs" / "rollout_scale.svg"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is modelled."""

    engines: int = 1_000
    prompts: tuple[int, ...] = (10_000, 100_000)
    """In flight, for the processor's time."""
    memory: tuple[int, ...] = (10_000, 30_000, 100_000)
    waiting: tuple[int, ...] = (1_000, 10_000)
    training_engines: int = 8
    steps: int = 12
    trainer: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Seconds of the trainer, over those in which a step of sync generates."""


SMALL = Size(
    engines=20,
    prompts=(100, 400),
    memory=(300, 900),
    waiting=(1_000,),
    training_engines=2,
    steps=6,
    trainer=(0.5,),
)
RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sync", {"mode": "sync"}),
    ("one step off", {"mode": "one_step_off"}),
    ("async, staleness 1", {"mode": "async", "max_staleness": 1.0}),
    ("async, staleness 2", {"mode": "async", "max_staleness": 2.0}),
    ("async, staleness 4", {"mode": "async", "max_staleness": 4.0}),
    ("ready first, 1 ahead", {"mode": "ready_first", "max_staleness": 1.0}),
    ("ready first, 2 ahead, bound 4", {"mode": "ready_first", "max_staleness": 2.0, "bound": 4}),
)
DEATHS = (0.0, 1.0)


def main(size: Size = SMALL) -> dict[str, Any]:
    """Measures and prints; returns the content of rollout_scale.json."""
    result: dict[str, Any] = {"size": asdict(size)}
    result["overhead"] = print_overhead(size)
    result["memory"] = measure_memory(size.engines, size.memory, ClusterConfig())
    print(f"{result['memory']['bytes a prompt']:,.0f} bytes for each prompt in flight")
    result["waiting"] = {str(count): measure_waiting(count) for count in size.waiting}
    result["utilisation"] = print_utilisation(size)
    result["deaths"] = print_deaths(size)
    return result


def print_overhead(size: Size) -> list[dict[str, Any]]:
    config = ClusterConfig(deaths_per_hour=0.01, has_tokens=False)
    found = [measure_overhead(size.engines, count, config).describe() for count in size.prompts]
    rows = [
        (
            f"{each['prompts']:,}",
            f"{each['seconds of generation']:,.0f} s",
            f"{each['microseconds a prompt']:.0f} us",
            f"{each['share of generation']:.2%}",
            each["engines replaced"],
        )
        for each in found
    ]
    head = ("prompts in flight", "engines generate", "driver a prompt", "driver / generation", "engines died")
    print(text_table(head, rows))
    return found


def print_utilisation(size: Size) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns measures by the trainer's time and by mode."""
    generation = measure(train(size, 0.0, {"mode": "sync"}))["seconds a step"]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for share in size.trainer:
        name = f"trainer {share:g} of generation"
        found[name] = {label: measure(train(size, share * generation, run)) for label, run in RUNS}
        print(text_table((name, *HEAD), [(label, *describe(each)) for label, each in found[name].items()]))
    return found


HEAD = (
    "s a step",
    "engines decode",
    "compute prompts",
    "trainer waits",
    "mean, most staleness",
    "lengths, first steps",
)


def describe(found: dict[str, Any]) -> Sequence[str]:
    return (
        f"{found['seconds a step']:.0f}",
        f"{found['decoding']:.0%}",
        f"{found['computing prompts']:.0%}",
        f"{found['trainer waits']:.0%}",
        f"{found['mean staleness']:.1f}, {max(map(int, found['staleness']))}",
        " ".join(map(str, found["lengths"][:3])),
    )


def print_deaths(size: Size) -> dict[str, dict[str, Any]]:
    """Returns measures of an asynchronous run by the share of engines that die in an hour."""
    found: dict[str, dict[str, Any]] = {}
    for rate in DEATHS:
        training = train(size, 120.0, {"mode": "async", "max_staleness": 2.0}, deaths_per_hour=rate)
        assert set(training.trained.values()) == {1}, "a prompt was trained on twice"
        assert len(training.trained) == size.steps * training.setting.prompts_per_step, "a prompt was lost"
        found[f"{rate:.0%} an hour"] = measure(training) | {"died": training.cluster.died}
    rows = [(name, each["died"], *describe(each)) for name, each in found.items()]
    print(text_table(("engines that die", "died", *HEAD), rows))
    return found


def train(
    size: Size, trainer_seconds: float, run: dict[str, Any], *, deaths_per_hour: float = 0.0
) -> Training:
    """Returns a run whose steps fill every slot of every engine once."""
    cluster = ClusterConfig(deaths_per_hour=deaths_per_hour)
    setting = Setting(
        engines=size.training_engines,
        prompts_per_step=size.training_engines * cluster.slots // GROUP,
        steps=size.steps,
        trainer_seconds=trainer_seconds,
        cluster=cluster,
        **run,
    )
    training = Training(setting)
    training.run()
    return training


if __name__ == "__main__":
    if "--full" in sys.argv:
        outcome = main(Size())
        write_result("rollout_scale", outcome)
        PLOT.write_text(
            draw_utilisation([(name, list(rows.items())) for name, rows in outcome["utilisation"].items()])
        )
    else:
        main()
