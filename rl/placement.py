"""Starts the processes of a run as Ray actors; no other module does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from rl.config import RLConfig
from rl.rollout.engine import ENGINE_ENV, Engine
from rl.rollout.manager import EngineCalls, EngineDied

WORKER_ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TRAINER_ENV = {"GLOO_SOCKET_IFNAME": "lo"}  # on one machine; the cluster of RAY_ADDRESS has another network
R = TypeVar("R")


def check_gpus(config: RLConfig) -> None:
    """Raises ValueError where there are too few GPUs: actors would wait for one without end."""
    available = int(ray.cluster_resources().get("GPU", 0))
    wanted = config.trainers + config.engine.num_engines
    if 0 < available < wanted:
        raise ValueError(
            f"trainers={config.trainers} and engine.num_engines={config.engine.num_engines} need {wanted} GPUs, "
            f"and Ray sees {available}; lower one of them"
        )


def build_engine_calls(config: RLConfig) -> EngineCalls[ActorHandle, ray.ObjectRef]:
    """Returns the manager's functions for engines that are Ray actors.

    Weights reach them through shared memory: they must run on the machine of the trainer's rank 0.
    """
    actor: Any = ray.remote(Engine).options(**_options(ENGINE_ENV))
    return EngineCalls(
        start=lambda: actor.remote(config),
        stop=ray.kill,
        ask=lambda engine, prompts, sampling, seed: engine.generate.remote(prompts, sampling, seed),
        update=lambda engine, manifest: engine.update_weights.remote(manifest),
        wait=_wait,
        take=_take,
    )


class TrainerProcess:
    """A TrainerWorker that is imported in its own process: the driver does not load Megatron."""

    def __init__(self, config: RLConfig, *, rank: int, world_size: int, init_method: str) -> None:
        from rl.trainer import TrainerWorker

        self._worker = TrainerWorker(config, rank=rank, world_size=world_size, init_method=init_method)

    def run(self, call: Callable[..., R], *args: Any) -> R:
        """Returns `call(worker, *args)`."""
        return call(self._worker, *args)


def start_trainers(config: RLConfig, *, init_method: str) -> list[ActorHandle]:
    """Starts one TrainerProcess per rank; `init_method` is their rendezvous (file:// or tcp://)."""
    env = {} if os.environ.get("RAY_ADDRESS") else TRAINER_ENV
    actor: Any = ray.remote(TrainerProcess).options(**_options(env))
    return [
        actor.remote(config, rank=rank, world_size=config.trainers, init_method=init_method)
        for rank in range(config.trainers)
    ]


def _options(env: dict[str, str]) -> dict[str, Any]:
    # only GPUs are reserved; without them all actors share the machine's cores
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    return {"num_cpus": 0, "num_gpus": int(has_gpus), "runtime_env": {"env_vars": WORKER_ENV | env}}


def _wait(replies: Sequence[ray.ObjectRef]) -> ray.ObjectRef:
    return ray.wait(list(replies), num_returns=1)[0][0]


def _take(reply: ray.ObjectRef) -> Any:
    try:
        return ray.get(reply)
    except RayActorError as error:
        raise EngineDied(str(error)) from error
