"""Reads what a cluster's launcher tells a rank: torchrun's variables, or Slurm's. No other module reads these."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

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
    port = env.get("MASTER_PORT") or FIRST_PORT + (job * 7 + step) % PORTS
    return f"tcp://{host}:{port}"


def first_host(nodes: str) -> str:
    """Returns the first name of a Slurm node list: "gpu03" of "gpu[03-05,07],cpu1"."""
    before_comma = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    first = before_comma.group() if before_comma else ""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def count_tasks(per_node: str) -> list[int]:
    """Returns the tasks of each node of a step: [8, 8, 4] of "8(x2),4"."""
    counts: list[int] = []
    for part in per_node.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or "1")
    return counts
