"""Reads what a cluster's launcher tells a rank: torchrun's variables, or Slurm's. No other module reads these."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

FIRST_PORT, PORTS = 20_000, 12_000
"""Ports of rendezvous under Slurm: below those that Linux gives to connections."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The place of a rank in its run, and the address where the ranks meet."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    """Ranks on this machine."""
    init_method: str

    def variables(self) -> dict[str, str]:
        """Returns the environment variables that hold this for other modules, whoever started the rank."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "INIT_METHOD": self.init_method,
        }


def find_identity(env: Mapping[str, str] = os.environ) -> Identity | None:
    """Returns the place of this process; None where neither torchrun, srun nor run_local started it as a rank.

    The only task of a Slurm step is none: it may be a shell (`srun --pty bash`), and starts its ranks itself.

    Raises:
        ValueError: Slurm started it, and its variables do not name the first node.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        return Identity(
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            local_rank=int(env.get("LOCAL_RANK", "0")),
            local_size=int(env.get("LOCAL_WORLD_SIZE", "1")),
            init_method=env.get("INIT_METHOD", "env://"),
        )
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set by srun, not by the batch script around it
        counts = count_tasks(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        node = min(int(env.get("SLURM_NODEID", "0")), len(counts) - 1)
        return Identity(
            rank=int(env["SLURM_PROCID"]),
            world_size=int(env["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(env.get("SLURM_LOCALID", "0")),
            local_size=counts[node],
            init_method=slurm_address(env),
        )
    return None


@dataclass(frozen=True, kw_only=True)
class Step:
    """A Slurm step with one task on each of several nodes, as a command that starts its own processes needs it."""

    node: int
    """The number of this node."""
    hosts: tuple[str, ...]
    name: str
    """Of job, step and start: no other step has it, nor this one after a requeue."""
    port: int
    """Follows from job and step."""


def find_step(command: str, env: Mapping[str, str] = os.environ) -> Step | None:
    """Returns the Slurm step of this process; None where it is the only task, or no task at all.

    Args:
        command: such as "omr rl RECIPE": it starts its processes itself, so that one task a node is right.

    Raises:
        ValueError: torchrun, or srun with several tasks on a node, started this process, or RAY_ADDRESS names a
            cluster, and several tasks are to join it.
    """
    right = f"`srun --ntasks-per-node=1 {command}` on several nodes, or `{command}` on one"
    if "RANK" in env and "WORLD_SIZE" in env:
        raise ValueError(
            f"RANK={env['RANK']} and WORLD_SIZE={env['WORLD_SIZE']}: torchrun, or another launcher of ranks, started "
            f"this process, but {command} starts its trainers and engines itself; use {right}"
        )
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return None
    counts = count_tasks(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    if max(counts) > 1:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE={env['SLURM_STEP_TASKS_PER_NODE']}: srun started several tasks on a node, but "
            f"{command} starts its trainers and engines itself; use {right}"
        )
    if "RAY_ADDRESS" in env:
        raise ValueError(
            f"RAY_ADDRESS={env['RAY_ADDRESS']} names a Ray cluster that runs already, but srun started {len(counts)} "
            f"tasks; use `{command}` once, or unset RAY_ADDRESS"
        )
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env.get("SLURM_STEP_ID", "0"))
    return Step(
        node=int(env["SLURM_NODEID"]),
        hosts=tuple(list_hosts(env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"])),
        name=f"{job}-{step}-{env.get('SLURM_RESTART_COUNT', '0')}",
        port=_choose_port(job, step),
    )


def slurm_address(env: Mapping[str, str]) -> str:
    """Returns where the ranks of a Slurm step meet: MASTER_ADDR and MASTER_PORT if set, else the first node.

    The port follows from job and step, so that two of them on one node do not meet.

    Raises:
        ValueError: no variable names the nodes.
    """
    if "MASTER_ADDR" in env and "MASTER_PORT" in env:
        return "env://"
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    host = env.get("MASTER_ADDR") or first_host(nodes)
    if not host:
        raise ValueError(
            "SLURM_STEP_NODELIST and SLURM_JOB_NODELIST are empty: srun did not say which node is the first; "
            "set MASTER_ADDR and MASTER_PORT"
        )
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env.get("SLURM_STEP_ID", "0"))
    port = env.get("MASTER_PORT") or _choose_port(job, step)
    return f"tcp://{host}:{port}"


def _choose_port(job: int, step: int) -> int:
    return FIRST_PORT + (job * 7 + step) % PORTS


def first_host(nodes: str) -> str:
    """Returns the first name of a Slurm node list: "gpu03" of "gpu[03-05,07],cpu1"; "" of none."""
    return next(iter(list_hosts(nodes)), "")


def list_hosts(nodes: str) -> list[str]:
    """Returns the names of a Slurm node list: gpu03, gpu04, cpu1 of "gpu[03-04],cpu1"."""
    found: list[str] = []
    for entry in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        parts = re.split(r"\[([^\]]*)\]", entry)  # text and ranges in turn
        choices = [_expand(part) if i % 2 else [part] for i, part in enumerate(parts)]
        found += map("".join, product(*choices))
    return found


def _expand(ranges: str) -> list[str]:
    """Returns the numbers of "03-05,07", as wide as they are written."""
    numbers: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return numbers


def count_tasks(per_node: str) -> list[int]:
    """Returns the tasks of each node of a step: [8, 8, 4] of "8(x2),4"."""
    counts: list[int] = []
    for part in per_node.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or "1")
    return counts
