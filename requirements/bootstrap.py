"""Fills .venv from requirements/cpu.txt and installs this package into it, editable. Standard library only.

Nothing outside the checkout's folder is written. An interrupted run continues where it stopped: finished
downloads stay in .venv/.cache, and the stamp that says "done" is written last.

    python3 requirements/bootstrap.py           fill .venv; moments when nothing changed
    python3 requirements/bootstrap.py --lock    resolve requirements/cpu.txt anew from setup.py
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
LOCK = ROOT / "requirements" / "cpu.txt"
OVERRIDES = ROOT / "requirements" / "overrides.txt"
STAMP = VENV / ".bootstrapped"

OLDEST_PYTHON = (3, 11)
NEEDED_GB = 5

NO_NETWORK = re.compile(
    r"error sending request|dns error|NewConnectionError|ProxyError|ConnectTimeout"
    r"|No matching distribution found for uv",
    re.I,
)
DISK_FULL = re.compile(r"No space left on device|os error 28", re.I)


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main(argv: list[str]) -> int:
    try:
        check_python()
        if "--lock" in argv:
            make_lock()
        elif not is_current():
            fill()
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def check_python() -> None:
    if sys.version_info < OLDEST_PYTHON:
        found, wanted = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        raise SetupError(
            f"{sys.executable} is Python {found}, but {wanted} or newer is needed; choose one, "
            f"for example: make demo PYTHON=python{wanted}"
        )


def is_current() -> bool:
    return STAMP.is_file() and STAMP.read_text() == stamp() and (BIN / "omr").is_file()


def stamp() -> str:
    """Changes with the interpreter and with everything that decides what is installed."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for path in (LOCK, ROOT / "setup.py", Path(__file__), Path(__file__).with_name("torchvision_ops.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest() + "\n"


def fill() -> None:
    STAMP.unlink(missing_ok=True)
    check_disk()
    make_venv()
    count = sum(1 for line in LOCK.read_text().splitlines() if "==" in line)
    say(f"installing {count} packages into {VENV} (about 1 GB to download, once)")
    uv("pip", "sync", *torch_source(), str(LOCK))
    uv("pip", "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    run([BIN / "python", ROOT / "requirements" / "torchvision_ops.py"])
    STAMP.write_text(stamp())
    say("ready; `.venv/bin/omr doctor` says what this machine can do")


def check_disk() -> None:
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < NEEDED_GB and not (BIN / "omr").is_file():
        raise SetupError(
            f"{free_gb:.1f} GB are free on the disk of {ROOT}, but about {NEEDED_GB} GB are needed; "
            "free some, or move the checkout"
        )


def make_venv() -> None:
    """A venv of this interpreter that holds uv, whatever an interrupted run left behind."""
    if venv_version() != sys.version_info[:2] or was_moved():
        say(f"creating {VENV} with Python {sys.version.split()[0]}")
        run([sys.executable, "-m", "venv", "--clear", VENV], hint=NO_VENV)
    if not (BIN / "uv").is_file():
        pinned = re.search(r"^uv==\S+", LOCK.read_text(), re.M)
        run([BIN / "python", "-m", "ensurepip", "--upgrade"], hint=NO_VENV, quiet=True)
        run([BIN / "python", "-m", "pip", "install", "--quiet", pinned[0] if pinned else "uv"])


NO_VENV = (
    "this Python cannot make virtual environments; install its venv package "
    "(Debian and Ubuntu: python3-venv), or choose another Python with PYTHON="
)


def venv_version() -> tuple[int, ...] | None:
    if not (BIN / "python").exists():
        return None
    found = subprocess.run(
        [BIN / "python", "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
    )
    return tuple(map(int, found.stdout.split())) if found.returncode == 0 else None


def was_moved() -> bool:
    """Whether the checkout was moved since .venv was filled: scripts name their interpreter in full."""
    script = BIN / "omr"
    return script.is_file() and not script.read_text().startswith(f"#!{BIN}")


def torch_source() -> list[str]:
    """Where the CPU build of torch lies: the folder that pip was told of, or PyTorch's own CPU index.

    uv does not read pip's configuration.
    """
    listed = subprocess.run([BIN / "python", "-m", "pip", "config", "list"], capture_output=True, text=True)
    folders = os.environ.get("PIP_FIND_LINKS") or "".join(
        re.findall(r"^\w+\.find-links='(.*)'$", listed.stdout, re.M)[:1]
    )
    if not folders:
        return ["--torch-backend", "cpu"]
    return [argument for folder in shlex.split(folders) for argument in ("--find-links", folder)]


def make_lock() -> None:
    """Resolve for every Python from the oldest one on, with no index, folder or host in the result."""
    make_venv()
    uv(
        *("pip", "compile", "setup.py", "--extra", "cpu", "--extra", "dev"),
        *(
            "--universal",
            "--python-version",
            ".".join(map(str, OLDEST_PYTHON)),
            "--overrides",
            str(OVERRIDES),
        ),
        *("--no-emit-package", "torchaudio", "--no-emit-package", "torchcodec"),
        *("--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"),
        *("--custom-compile-command", "make lock"),
        *torch_source(),
        *("--output-file", str(LOCK)),
    )


def uv(*arguments: str) -> None:
    environment = os.environ | {
        "VIRTUAL_ENV": str(VENV),
        "UV_CACHE_DIR": str(VENV / ".cache"),
        "UV_NO_PROGRESS": "1",
    }
    run([BIN / "uv", *arguments], environment=environment)


def run(
    command: list[str | Path],
    *,
    environment: dict[str, str] | None = None,
    hint: str = "",
    quiet: bool = False,
) -> None:
    """Run a step, showing what it says; turn its failure into advice."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if not quiet:
                print(f"  {line}", end="", flush=True)
    finally:
        process.terminate()  # does nothing but after an interrupt: the output ends when the step does
    if process.wait() == 0:
        return
    text = "".join(said)
    if DISK_FULL.search(text):
        raise SetupError(f"the disk is full; about {NEEDED_GB} GB are needed under {ROOT}. Then run it again")
    if NO_NETWORK.search(text):
        raise SetupError(
            "a package index could not be reached (see above). Check the network (HTTPS_PROXY names "
            "a proxy) and run it again: finished downloads are kept"
        )
    raise SetupError(hint or f"{shlex.join(map(str, command[:4]))} ... failed (see above)")


def say(text: str) -> None:
    print(f"set-up: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
