"""How many nodes, tasks and GPUs a command takes on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from launch.submit.config import SlurmConfig
from megatron_omr.config import SFTConfig
from rl.config import EvalConfig, RLConfig
from rl.evaluation.config import BenchmarksConfig

Stage: TypeAlias = Literal["sft", "rl", "data", "eval", "convert"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """The nodes, tasks and GPUs of a job."""

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 0
    partition: str = ""

    def describe(self) -> str:
        parts = [f"{self.nodes} node{'s' * (self.nodes > 1)}", f"{self.tasks_per_node} task(s) on each"]
        parts += [f"{self.gpus_per_node} GPUs on each"] if self.gpus_per_node else ["no GPU"]
        return ", ".join(parts)


def find_size(stage: Stage, config: object, slurm: SlurmConfig, *, nodes: int = 0) -> Size:
    """Returns the size of a job.

    SFT has a task for each rank, `processes` in all. RL has a task on each node, which starts Ray there, and needs a
    GPU (or, without GPUs, a place of tasks_per_node) for each trainer, and `tp` of them for each engine. Evaluation,
    data and conversion take one node.

    Args:
        nodes: nodes that the user asked for; 0 where the recipe decides.

    Raises:
        ValueError: the recipe does not fit the nodes, or the cluster file does not say what a node holds.
    """
    if isinstance(config, SFTConfig):
        tasks, gpus, needed = _place_ranks(config.processes, _places(slurm), slurm)
    elif isinstance(config, RLConfig):
        tasks, places = 1, config.trainers + _count_engine_gpus(config)
        needed = -(-places // _places(slurm))
        gpus = min(places, slurm.gpus_per_node)
        if nodes > needed:
            needed, gpus = nodes, slurm.gpus_per_node
    elif isinstance(config, EvalConfig | BenchmarksConfig):
        tasks, needed, gpus = 1, 1, min(_count_engine_gpus(config), slurm.gpus_per_node)
        if slurm.gpus_per_node and gpus < _count_engine_gpus(config):
            raise ValueError(
                f"engine.num_engines={config.engine.num_engines} x tp={config.engine.tp} need more GPUs than "
                f"slurm.gpus_per_node={slurm.gpus_per_node}, and evaluation runs on one node; lower one of them"
            )
    else:
        tasks, needed, gpus = 1, 1, 0
    if nodes and nodes != needed:
        raise ValueError(f"--nodes {nodes}, but `omr {stage}` takes {needed} with this recipe; {_FIX[stage]}")
    share = slurm.cpus_per_node * (gpus or slurm.gpus_per_node or 1) // (slurm.gpus_per_node or 1)
    return Size(
        nodes=needed,
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        cpus_per_task=share // tasks,
        partition=slurm.cpu_partition
        if stage in ("data", "convert") and slurm.cpu_partition
        else slurm.partition,
    )


_FIX: dict[Stage, str] = {
    "sft": "leave --nodes out, or change --processes",
    "rl": "leave --nodes out, or lower --trainers or --engine.num_engines",
    "eval": "leave --nodes out: it runs on one",
    "data": "leave --nodes out: it runs on one",
    "convert": "leave --nodes out: it runs on one",
}


def _places(slurm: SlurmConfig) -> int:
    places = slurm.gpus_per_node or slurm.tasks_per_node
    if not places:
        raise ValueError(
            "slurm.gpus_per_node=0 and slurm.tasks_per_node=0: the cluster file must say how many GPUs a node has, "
            "or how many ranks a node without GPUs takes"
        )
    return places


def _place_ranks(ranks: int, places: int, slurm: SlurmConfig) -> tuple[int, int, int]:
    """Returns tasks of a node, GPUs of a node, and nodes."""
    if ranks < places:
        return ranks, min(ranks, slurm.gpus_per_node), 1
    if ranks % places:
        field = "gpus_per_node" if slurm.gpus_per_node else "tasks_per_node"
        raise ValueError(
            f"processes={ranks} must be a multiple of slurm.{field}={places}, the ranks of a node, or fit on one; "
            f"use {ranks // places * places} or {(ranks // places + 1) * places}"
        )
    return places, slurm.gpus_per_node, ranks // places


def _count_engine_gpus(config: RLConfig | EvalConfig | BenchmarksConfig) -> int:
    if isinstance(config, RLConfig) and config.rollout.placement == "colocated":
        return 0  # they take the trainer's
    return config.engine.num_engines * config.engine.tp
