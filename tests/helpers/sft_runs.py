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


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
