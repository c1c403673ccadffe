"""`omr rl` on three hosts, as srun starts it: real Ray, vLLM and Megatron, weights over the network, a lost host."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launch.recipes.rl import RL_RECIPES
from rl.config import HeldOutConfig, RLConfig
from tests.helpers.hosts import Host, needs_hosts, start_hosts
from tests.helpers.processes import wait_until
from tests.helpers.rl_rows import SAME, responses, rows
from tests.helpers.srun import find_on, srun

pytestmark = [pytest.mark.heavy, pytest.mark.slow, needs_hosts, pytest.mark.timeout(600)]

FAST_NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""By default Ray takes about half a minute to see that a node is lost."""


def options(config: Mapping[str, object], recipe: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yields the command line's options of the fields that differ from the recipe's."""
    for name, value in config.items():
        before = recipe[name]
        if isinstance(value, dict) and isinstance(before, dict):
            yield from options(value, before, f"{prefix}{name}.")
        elif isinstance(value, bool) and value != before:
            group, _, field = f"{prefix}{name}".rpartition(".")
            yield f"--{group}{'.' * bool(group)}{'' if value else 'no-'}{field}"
        elif value != before:
            yield f"--{prefix}{name}"
            yield from words_of(value)


def words_of(value: object) -> Iterator[str]:
    """Yields a value as the words of the command line: of pairs, each member."""
    if isinstance(value, tuple):
        for member in value:
            yield from words_of(member)
    else:
        yield str(value)


def crash_in_generation(hosts: Sequence[Host], run: Path) -> None:
    """Ends the last host when a step begins, so while its engine generates."""
    hosts[2].crash()


def crash_in_transfer(hosts: Sequence[Host], run: Path) -> None:
    """Ends the last host while the weights are on their way: its engine stopped before, so that they cannot arrive."""
    wait_until(lambda: phase_of(run)[0] in ("_compare", "train"), seconds=60)  # engines have nothing to do
    for engine in find_on(hosts[2], "ray::EngineServer"):
        engine.suspend()
    wait_until(lambda: phase_of(run)[0] == "send_weights" and phase_of(run)[1] > 0.5, seconds=60)
    hosts[2].crash()


def phase_of(run: Path) -> tuple[str, float]:
    """Returns what the first trainer does, by its sign of life, and since how many seconds."""
    with suppress(ValueError):  # it is half written
        beat = json.loads((run / "heartbeats" / "rank-00000.json").read_text())
        return beat["phase"].rpartition(".")[2], beat["seconds"]
    return "", 0.0


@pytest.mark.parametrize("crash", [crash_in_generation, crash_in_transfer])
def test_trainers_on_two_hosts_lose_the_host_of_an_engine(
    crash: Callable[[Sequence[Host], Path], None], finished: Path, sampling_config: RLConfig, tmp_path: Path
) -> None:
    """Hosts pretend to have GPUs: one, two and two for two trainers and two engines, so that no other has room.

    All steps are those of the undisturbed run on one machine: the same responses by the same weights. That run also
    measured held-out accuracy, which this one does not: it changes nothing.
    """
    run = tmp_path / "run"
    engine = replace(sampling_config.engine, num_engines=2, transfer_timeout=8)
    fault = replace(sampling_config.fault, beat=0.1)  # phase_of shall see each phase
    config = replace(sampling_config, run=str(run), engine=engine, held_out=HeldOutConfig(), fault=fault)
    words = [sys.executable, "-m", "launch.cli", "rl", "demo"]
    words += options(asdict(config), asdict(RL_RECIPES["demo"]()))
    gpus = [{**FAST_NOTICE, "RAY_OVERRIDE_RESOURCES": f'{{"GPU": {count}}}'} for count in (1, 2, 2)]
    with (
        start_hosts(["alpha", "beta", "gamma"], tmp_path.parent) as hosts,  # they see the policy, too
        srun(hosts, words, tmp_path, env=gpus) as tasks,
    ):
        driver = tasks.processes[0]
        wait_until(lambda: (run / "metrics.jsonl").exists() or driver.poll() is not None, seconds=200)
        wait_until(lambda: driver.poll() is not None or len(rows(run)) >= 2, seconds=200)
        assert driver.poll() is None, tasks.output()
        crash(hosts, run)
        assert tasks.wait(0, 1, seconds=200) == [0, 0], tasks.output()
        one, two, three = (host.address for host in hosts)
        plan = f"{one}: 1 trainers; {two}: 1 trainers, 1 engines; {three}: 1 engines"
        assert plan in tasks.output()
    seen, wanted = rows(run), rows(finished)
    assert [[row[k] for k in SAME] for row in seen] == [[row[k] for k in SAME] for row in wanted]
    assert responses(run) == responses(finished)
    # after every update over the network: other weights give 0.1 and more
    assert all(row["mismatch_max"] < 1e-4 for row in seen)
    assert [row["engines_lost"] for row in seen] == [0, 0, 1, 1] and seen[-1]["engine_restarts"] == 0
    assert (run / "hf" / "model.safetensors").exists()
