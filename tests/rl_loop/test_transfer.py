"""Transfers to Ray actors: each engine gets the weights or is found dead in time, and the others are not disturbed.

The engines are actors with the readers of real ones, without vLLM; test_manager.py and test_loop.py have real ones.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest
import ray
import torch
from ray.actor import ActorHandle

from data_pipeline.ray_session import start_ray, stop_ray
from rl.config import EngineConfig, RLConfig, SamplingConfig
from rl.placement import transfer as transfer_module
from rl.placement.engines import build_engine_calls
from rl.placement.places import Placement
from rl.placement.plan import Plan
from rl.placement.transfer import WeightTransfer, choose_transfer
from rl.rollout.calls import EngineDied, Report, Request
from rl.rollout.manager import RolloutManager
from rl.types import Responses
from rl.weight_sync import collective, shared_memory
from rl.weight_sync.layout import WeightMismatch
from tests.helpers.groups import make_prompt
from tests.helpers.processes import find_processes
from tests.helpers.weights import LocalTrainers, some_weights

Weights = Iterable[tuple[str, torch.Tensor]]


class BareEngine:
    """The methods of rl.rollout.server.EngineServer; it answers each prompt after a moment."""

    def __init__(self, config: object = None, *, fits: bool = True) -> None:
        self.updates: list[int] = []
        self._asked: list[tuple[int, Request]] = []
        self._answered = 0
        self._fits, self._reader, self._digest = fits, None, {}

    def is_ready(self) -> int:
        return os.getpid()

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        self._asked += requests

    def collect(self) -> Report:
        time.sleep(0.1)
        finished = (
            [(self._asked[self._answered][0], Responses())] if self._answered < len(self._asked) else []
        )
        self._answered += len(finished)
        return Report(
            finished=finished,
            taken=len(self._asked),
            running=len(self._asked) - self._answered,
            waiting=0,
            tokens=self._answered,
            version=0,
        )

    def join_transfer(self, place: Mapping[str, Any]) -> None:
        if not self._fits:
            raise WeightMismatch("b is missing")
        if "port" in place:
            self._reader = collective.CollectiveReader(collective.read_place(dict(place)), rank=0)
        else:
            self._reader = shared_memory.SharedMemoryReader(shared_memory.read_place(dict(place)))

    def update_weights(self, version: int) -> None:
        assert self._reader is not None
        self.updates.append(version)
        self._digest = digest(self._reader.receive(version))
        self._reader.confirm(version)

    def seen(self) -> tuple[list[int], dict[str, int]]:
        return self.updates, self._digest


def digest(weights: Weights) -> dict[str, int]:
    return {name: zlib.crc32(t.contiguous().view(-1).view(torch.uint8).numpy()) for name, t in weights}


class InterruptedTrainers(LocalTrainers):
    """Calls `interrupt` in the middle of the next export."""

    interrupt: Callable[[], object] | None = None

    def export(self) -> Weights:
        for number, pair in enumerate(self.weights):
            if number == len(self.weights) // 2 and self.interrupt:
                self.interrupt()
                self.interrupt = None
            yield pair

    def train(self, seed: int) -> None:
        self.weights = list(some_weights(seed).items())


@pytest.fixture(scope="module")
def start_engine() -> Iterator[Callable[..., ActorHandle]]:
    start_ray()
    actor: Any = ray.remote(BareEngine).options(num_cpus=0)
    yield lambda **options: actor.remote(**options)
    stop_ray()


def updates(engine: ActorHandle, seed: int) -> list[int]:
    """Returns the versions that the engine was asked to load, after checking that it has the weights of `seed`."""
    seen, found = ray.get(engine.seen.remote())
    assert found == digest(some_weights(seed).items())
    return seen


def engine_config(way: Any) -> EngineConfig:
    return EngineConfig(weight_transfer=way, transfer_timeout=2)


@pytest.mark.heavy
@pytest.mark.parametrize("way", ["shared_memory", "collective"])
def test_engine_lost_in_a_transfer_is_found_and_the_others_get_the_weights(
    way: str, start_engine: Callable[..., ActorHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_module, "GRACE_SECONDS", 1)
    trainers = InterruptedTrainers(some_weights(1).items(), engine_config(way))
    transfer = WeightTransfer(trainers, engine_config(way))
    engines = [start_engine() for _ in range(4)]
    kept, killed, hung, late = engines
    pids = dict(zip(engines, ray.get([engine.is_ready.remote() for engine in engines]), strict=True))
    with closing(trainers.sender):
        assert transfer.update([kept, killed, hung], 1) == [None, None, None]
        assert trainers.sent == 1 and [updates(e, 1) for e in (kept, killed, hung)] == [[1]] * 3
        for version, (victim, how) in enumerate(((killed, signal.SIGKILL), (hung, signal.SIGSTOP)), 2):
            trainers.train(version)
            trainers.interrupt = lambda victim=victim, how=how: os.kill(pids[victim], how)
            left = [kept, *((killed, hung) if victim is killed else (hung,))]
            found = transfer.update(left, version)
            assert [isinstance(outcome, EngineDied) for outcome in found] == [
                engine is victim for engine in left
            ]
        seen = updates(kept, 3)  # a broadcast that broke before it had all is repeated
        assert list(dict.fromkeys(seen)) == [1, 2, 3] and trainers.sent == len(seen)
        assert way == "collective" or seen == [1, 2, 3]
        assert transfer.update([late], 3) == [None]
        assert updates(late, 3) == [3]
        assert trainers.sent == len(seen) + (way == "collective")  # shared memory still has the weights
        assert updates(kept, 3) == seen  # it took no part
        trainers.train(4)
        assert transfer.update([kept, late], 4) == [None, None]
        assert updates(kept, 4)[-1] == updates(late, 4)[-1] == 4
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.heavy
def test_whatever_a_trainer_raises_ends_the_transfer(start_engine: Callable[..., ActorHandle]) -> None:
    trainers = InterruptedTrainers(some_weights().items(), engine_config("shared_memory"))
    transfer, engine = WeightTransfer(trainers, engine_config("shared_memory")), start_engine()

    def fail() -> None:
        raise LookupError("a broken export")

    trainers.interrupt = fail
    with closing(trainers.sender), pytest.raises(LookupError, match="a broken export"):
        transfer.update([engine], 1)
    ray.kill(engine)


@pytest.mark.heavy
def test_engine_that_hangs_while_it_generates_is_replaced_and_those_that_answer_are_not(
    start_engine: Callable[..., ActorHandle],
) -> None:
    """Of two engines one is stopped, as a process whose accelerator does not come back is."""
    engine = EngineConfig(num_engines=2, max_num_seqs=4, token_timeout=3)
    config = RLConfig(run="", model="", shards="", engine=engine)

    def update(engines: Sequence[ActorHandle], version: int) -> list[EngineDied | None]:
        ray.get([engine.is_ready.remote() for engine in engines])
        return [None] * len(engines)

    calls = build_engine_calls(
        config, Placement(config), update=update, resend=lambda engines, version: [], kind=BareEngine
    )
    with closing(RolloutManager(calls, engine)) as manager:
        manager.update_weights(1)
        hung, busy = find_processes("ray::BareEngine")[-2:]
        hung.suspend()
        found = manager.generate([make_prompt(number) for number in range(30)], SamplingConfig(n=1), 1)
        assert len(found) == 30 and manager.restarts == 1
        hung.wait(timeout=60)  # Ray has killed it, and takes its time to notice its end
        assert busy.is_running()
        assert [state.state for state in manager.states()].count("idle") >= 1
        assert {state.address for state in manager.states()} == {"127.0.0.1"}


@pytest.mark.heavy
def test_weights_of_another_model_are_refused_before_any_is_sent(
    start_engine: Callable[..., ActorHandle],
) -> None:
    trainers = InterruptedTrainers(some_weights().items(), engine_config("shared_memory"))
    transfer, engine = WeightTransfer(trainers, engine_config("shared_memory")), start_engine(fits=False)
    with closing(trainers.sender), pytest.raises(WeightMismatch, match="^b is missing$"):
        transfer.update([engine], 1)
    assert trainers.sent == 0
    ray.kill(engine)


def test_auto_takes_shared_memory_where_all_engines_are_beside_rank_0() -> None:
    def plan(*engines: str) -> Plan:
        return Plan(trainers=("a", "b"), engines=engines, group_size=1)

    def choose(way: Any, *engines: str) -> str:
        config = RLConfig(run="", model="", shards="", engine=EngineConfig(weight_transfer=way))
        return choose_transfer(config, plan(*engines)).engine.weight_transfer

    assert choose("auto", "a", "a") == "shared_memory" == choose("shared_memory", "a")
    assert choose("auto", "a", "b") == "collective" == choose("collective", "a")
    with pytest.raises(ValueError, match="engine.weight_transfer=shared_memory reaches engines on a alone"):
        choose("shared_memory", "a", "b")
