"""Small SFT runs for `run_ranks` and `start_ranks`: the function of a rank, and what a run leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from megatron_omr.config import SFTConfig


def sft_rank(config: SFTConfig) -> None:
    from megatron_omr.sft import run_sft

    env = os.environ
    run_sft(config, rank=int(env["RANK"]), world_size=int(env["WORLD_SIZE"]), init_method=env["INIT_METHOD"])


def logged_sft_rank(config: SFTConfig) -> None:
    """Writes the rank's standard error to a file: what forks a rank may have been started by a test before."""
    file = os.open(stderr_of(config, int(os.environ["RANK"])), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    sft_rank(config)


def stderr_of(config: SFTConfig, rank: int) -> Path:
    return Path(f"{config.run}-{rank}.stderr")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
