"""Starts the processes of a run as Ray actors; no other module does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from data_pipeline.failures import GRACE_SECONDS, Failure, build_rank_error, call_or_fail
from data_pipeline.imports import collection_paused
from megatron_omr.faults.heartbeat import Heartbeat
from rl.config import RLConfig
from rl.placement.network import LOOPBACK, join_network, open_store
from rl.placement.places import Place, Placement
from rl.rollout.calls import EngineDied

WORKER_ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
WATCH_SECONDS = 1.0
"""Between two looks at the trainers while they are waited for."""
R = TypeVar("R")


class TrainerProcess:
    """A TrainerWorker that is imported in its own process: the driver does not load Megatron."""

    def __init__(self, rank: int) -> None:
        self._rank, self._name = rank, _name(rank)
        self._worker: Any = None
        self._heart: Heartbeat | None = None

    def find_gpu(self) -> str:
        """Returns what CUDA calls its GPU."""
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def open_store(self, on_loopback: bool) -> str:
        """Opens the store through which the workers meet; returns its address, tcp://host:port."""
        self._store, address = open_store(LOOPBACK if on_loopback else ray.util.get_node_ip_address())
        return address

    def start(self, config: RLConfig, world_size: int, init_method: str) -> None | Failure:
        """Loads the model and joins the other workers at `init_method`, the address of rank 0's store."""

        def build() -> None:
            self._heart = Heartbeat(Path(config.run), config.fault, rank=self._rank)
            on_loopback = init_method.startswith(f"tcp://{LOOPBACK}:")
            join_network(LOOPBACK if on_loopback else ray.util.get_node_ip_address())

            with collection_paused():
                from rl.trainer import TrainerWorker

            self._worker = TrainerWorker(
                config, rank=self._rank, world_size=world_size, init_method=init_method
            )

        return call_or_fail(self._name, build)

    def run(self, call: Callable[..., R], *args: Any) -> R | Failure:
        """Returns `call(worker, *args)`, or what it raised."""
        assert self._heart is not None, "start it first"
        with self._heart.during(call.__qualname__.partition(".<locals>")[0]):
            return call_or_fail(self._name, call, self._worker, *args)


def start_trainers(config: RLConfig, placement: Placement) -> tuple[list[ActorHandle], list[ray.ObjectRef]]:
    """Starts the processes of the trainer; returns them, and their replies once they have met."""
    places = placement.reserve_trainers()
    processes = [choose_actor(TrainerProcess, place).remote(rank) for rank, place in enumerate(places)]
    if placement.plan.shared and places[0].num_gpus:
        placement.trainer_gpus = ray.get([process.find_gpu.remote() for process in processes])
    on_one_node = len(set(placement.plan.trainers)) == 1
    store = processes[0].open_store.remote(on_one_node)
    return processes, [process.start.remote(config, len(processes), store) for process in processes]


def collect(
    replies: Sequence[ray.ObjectRef], *, wait: bool = True, watch: Callable[[], object] = lambda: None
) -> list[Any]:
    """Returns the replies of trainers 0, 1, ... to one call; without `wait` those that have arrived.

    Args:
        watch: called again and again while it waits; what it raises ends the wait.

    Raises:
        RankError: some failed or died; names the one that was the cause.
    """
    results: dict[ray.ObjectRef, Any] = {}
    failures: list[Failure] = []
    deadline = None if wait else time.monotonic()
    while waiting := [reply for reply in replies if reply not in results]:
        left = WATCH_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait(waiting, timeout=left)
        if not ready and deadline is None:
            watch()
            continue
        if not ready:
            break
        results[ready[0]] = result = _result(ready[0], replies.index(ready[0]))
        if isinstance(result, Failure):
            deadline = deadline if failures else time.monotonic() + GRACE_SECONDS
            failures.append(result)
    if failures:
        raise build_rank_error(failures)
    return [results[reply] for reply in replies if reply in results]


def _result(reply: ray.ObjectRef, rank: int) -> Any:
    """Returns the reply of a trainer, or a Failure where its process has died."""
    try:
        return ray.get(reply)
    except RayActorError:
        death = "or crashed (SIGKILL often means that memory ran out)"  # Ray does not know the signal
        return Failure(rank=_name(rank), time=time.time_ns(), death=death)


def _name(rank: int) -> str:
    return f"trainer rank {rank}"


def choose_actor(kind: type, place: Place, env: Mapping[str, str] = {}, **options: int) -> Any:
    """Returns the class of an actor at a place; `.remote(...)` starts it."""
    environment = {"env_vars": {**WORKER_ENV, **env, **place.env}}
    return ray.remote(kind).options(**place.options(), **options, runtime_env=environment)


def take_reply(reply: ray.ObjectRef) -> Any:
    """Returns an engine's reply.

    Raises:
        EngineDied: its process ended, its thread has, or the reply was lost, as on a node that died.
        Exception: what the call raised.
    """
    try:
        return ray.get(reply)
    except RayActorError as error:
        lines = str(error).splitlines()  # the last one says what its start raised, if that was the cause
        raise EngineDied(lines[-1] if error.actor_init_failed else lines[0]) from error
    except RayTaskError as error:
        if isinstance(error.cause, (ValueError, OSError, EngineDied)):
            raise error.cause from error  # its message alone, without the engine's traceback
        raise
    except RayError as error:
        reason = str(error).partition("\n")[0]
        raise EngineDied(f"its reply was lost: {type(error).__name__}: {reason}") from error
