"""Fills a virtual environment from its lock and installs this package into it, editable. Standard library only.

Nothing outside the checkout's folder is written. An interrupted run continues where it stopped: finished
downloads stay in the environment's .cache, and the stamp that says "done" is written last.

    python3 requirements/bootstrap.py             fill .venv from requirements/cpu.txt; moments when nothing changed
    python3.12 requirements/bootstrap.py latest   fill .venv-latest from requirements/latest.txt
    python3 requirements/bootstrap.py peers       fill .venv-peers from requirements/peers.txt
    python3 requirements/bootstrap.py --lock      resolve all locks anew from setup.py
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """A virtual environment, the extra of setup.py it holds, and what it needs."""

    venv: Path
    extra: str
    oldest_python: tuple[int, int]
    needed_gb: int
    has_cpu_torch: bool
    """Whether torch is PyTorch's CPU build; else PyPI's, which brings CUDA's libraries along."""
    example: str
    """The command that names another interpreter, without its version."""
    has_dev: bool = True
    """Whether it holds the extra "dev" too: all that tests and lint need."""

    @property
    def bin(self) -> Path:
        return self.venv / "bin"

    @property
    def stamp(self) -> Path:
        return self.venv / ".bootstrapped"

    @property
    def lock(self) -> Path:
        return ROOT / "requirements" / f"{self.extra}.txt"

    @property
    def overrides(self) -> list[Path]:
        """Files of requirements that stand in the place of what packages ask for."""
        files = [ROOT / "requirements" / name for name in ("overrides.txt", f"overrides-{self.extra}.txt")]
        return [file for file in files if file.is_file()]


CPU = Environment(
    venv=ROOT / ".venv",
    extra="cpu",
    oldest_python=(3, 11),
    needed_gb=5,
    has_cpu_torch=True,
    example="make demo PYTHON=python",
)
LATEST = Environment(
    venv=ROOT / ".venv-latest",
    extra="latest",
    oldest_python=(3, 12),
    needed_gb=9,
    has_cpu_torch=False,
    example="make test-latest PYTHON312=python",
)
PEERS = Environment(
    venv=ROOT / ".venv-peers",
    extra="peers",
    oldest_python=(3, 11),
    needed_gb=3,
    has_cpu_torch=True,
    example="make test-peers PYTHON=python",
    has_dev=False,
)

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
        if "--lock" in argv:
            make_locks()
        else:
            set_up({"latest": LATEST, "peers": PEERS}.get(argv[0] if argv else "", CPU))
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def set_up(env: Environment) -> None:
    check_python(env)
    if not is_current(env):
        fill(env)


def check_python(env: Environment) -> None:
    if sys.version_info < env.oldest_python:
        found, wanted = (".".join(map(str, v[:2])) for v in (sys.version_info, env.oldest_python))
        raise SetupError(
            f"{sys.executable} is Python {found}, but {wanted} or newer is needed; choose one, "
            f"for example: {env.example}{wanted}"
        )


def is_current(env: Environment) -> bool:
    return env.stamp.is_file() and env.stamp.read_text() == stamp(env) and (env.bin / "omr").is_file()


def stamp(env: Environment) -> str:
    """Changes with the interpreter and with everything that decides what is installed."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for path in (env.lock, ROOT / "setup.py", Path(__file__), Path(__file__).with_name("torchvision_ops.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest() + "\n"


def fill(env: Environment) -> None:
    env.stamp.unlink(missing_ok=True)
    check_disk(env)
    make_venv(env)
    count = sum(1 for line in env.lock.read_text().splitlines() if "==" in line)
    say(f"installing {count} packages into {env.venv} (gigabytes to download, once)")
    uv(env, "pip", "sync", *torch_source(env, env.bin / "python"), str(env.lock))
    uv(env, "pip", "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if re.search(r"^torchvision==", env.lock.read_text(), re.M):
        run([env.bin / "python", ROOT / "requirements" / "torchvision_ops.py"])
    env.stamp.write_text(stamp(env))
    say(
        f"ready; `{env.bin.relative_to(ROOT)}/omr doctor` says what this machine can do"
        if env.has_dev
        else "ready"
    )


def check_disk(env: Environment) -> None:
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < env.needed_gb and not (env.bin / "omr").is_file():
        raise SetupError(
            f"{free_gb:.1f} GB are free on the disk of {ROOT}, but about {env.needed_gb} GB are needed; "
            "free some, or move the checkout"
        )


def make_venv(env: Environment) -> None:
    """A venv of this interpreter that holds uv, whatever an interrupted run left behind."""
    if venv_version(env) != sys.version_info[:2] or was_moved(env):
        say(f"creating {env.venv} with Python {sys.version.split()[0]}")
        run([sys.executable, "-m", "venv", "--clear", env.venv], hint=NO_VENV)
    if not (env.bin / "uv").is_file():
        pinned = re.search(r"^uv==\S+", env.lock.read_text(), re.M)
        run([env.bin / "python", "-m", "ensurepip", "--upgrade"], hint=NO_VENV, quiet=True)
        run([env.bin / "python", "-m", "pip", "install", "--quiet", pinned[0] if pinned else "uv"])


NO_VENV = (
    "this Python cannot make virtual environments; install its venv package "
    "(Debian and Ubuntu: python3-venv), or choose another Python with PYTHON="
)


def venv_version(env: Environment) -> tuple[int, ...] | None:
    if not (env.bin / "python").exists():
        return None
    found = subprocess.run(
        [env.bin / "python", "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
    )
    return tuple(map(int, found.stdout.split())) if found.returncode == 0 else None


def was_moved(env: Environment) -> bool:
    """Whether the checkout was moved since the environment was filled: scripts name their interpreter in full."""
    script = env.bin / "omr"
    return script.is_file() and not script.read_text().startswith(f"#!{env.bin}")


def torch_source(env: Environment, python: Path) -> list[str]:
    """Where the CPU build of torch lies: the folder that `python`'s pip was told of, or PyTorch's own CPU index.

    uv does not read pip's configuration.
    """
    if not env.has_cpu_torch:
        return []
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True)
    folders = os.environ.get("PIP_FIND_LINKS") or "".join(
        re.findall(r"^\w+\.find-links='(.*)'$", listed.stdout, re.M)[:1]
    )
    if not folders:
        return ["--torch-backend", "cpu"]
    return [argument for folder in shlex.split(folders) for argument in ("--find-links", folder)]


def make_locks() -> None:
    """Resolve for every Python from the oldest one on, with no index, folder or host in the result."""
    check_python(CPU)
    make_venv(CPU)
    for env in (CPU, LATEST, PEERS):
        extras = (env.extra, "dev") if env.has_dev else (env.extra,)
        uv(
            CPU,
            *("pip", "compile", "setup.py", *(f"--extra={extra}" for extra in extras)),
            *("--universal", "--python-version", ".".join(map(str, env.oldest_python))),
            *(argument for file in env.overrides for argument in ("--overrides", str(file))),
            *("--no-emit-package", "torchaudio", "--no-emit-package", "torchcodec"),
            *("--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"),
            *("--custom-compile-command", "make lock"),
            *torch_source(env, CPU.bin / "python"),
            *("--output-file", str(env.lock)),
        )


def uv(env: Environment, *arguments: str) -> None:
    environment = os.environ | {
        "VIRTUAL_ENV": str(env.venv),
        "UV_CACHE_DIR": str(env.venv / ".cache"),
        "UV_NO_PROGRESS": "1",
    }
    run([env.bin / "uv", *arguments], environment=environment)


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
        raise SetupError(f"the disk of {ROOT} is full; free some of it, then run it again")
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
