"""Asks the driver for this machine's GPUs, without importing torch and without starting CUDA in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path


@cache
def list_gpus() -> list[str]:
    """Returns name and memory of each GPU, as nvidia-smi prints them; without it the driver's files."""
    tool = shutil.which("nvidia-smi")
    query = [tool or "", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True) if tool else None
    listed = done.stdout.strip() if done and done.returncode == 0 else ""
    return [line.strip() for line in listed.splitlines()] or sorted(
        map(str, Path("/dev").glob("nvidia[0-9]*"))
    )


def count_gpus() -> int:
    """Returns the GPUs that a process started from here may use: CUDA_VISIBLE_DEVICES hides the others."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(list_gpus())
    named = [name.strip() for name in visible.split(",")]
    hidden = next((i for i, name in enumerate(named) if name in ("", "-1")), len(named))
    return min(hidden, len(list_gpus()))
