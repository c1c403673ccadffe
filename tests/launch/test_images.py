"""The Dockerfiles copy, run and pin what is there; nothing of them is built here."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from launch.cli import OMR
from tests.helpers.setup_file import ROOT, setup_arguments

FILES = ("Dockerfile", "Dockerfile.cpu")
IGNORED = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith(("#", "!"))
]
image = pytest.mark.parametrize("name", FILES)


def read_instructions(name: str) -> list[tuple[str, str]]:
    """Returns (instruction, arguments) of each line, continued lines as one, comments left out."""
    lines = (ROOT / name).read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [(first, rest) for first, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def is_ignored(path: str) -> bool:
    """Tells whether .dockerignore leaves out a file, or a folder that it is in."""
    parts = Path(path).parts
    heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    return any(
        fnmatch.fnmatch(
            head.rpartition("/")[2] if pattern.startswith("**/") else head, pattern.removeprefix("**/")
        )
        for pattern in IGNORED
        for head in heads
    )


@image
def test_what_an_image_copies_and_runs_is_there(name: str):
    instructions = read_instructions(name)
    assert [rest for first, rest in instructions if first == "COPY"] == [". ."], (
        "one copy, less .dockerignore"
    )
    runs = " ".join(rest for first, rest in instructions if first == "RUN")
    for file in re.findall(r"[\w/]+\.(?:py|txt|sh)\b", runs):
        assert (ROOT / file).is_file() and not is_ignored(file), file
    for extra in re.findall(r"'\.\[(\w+)\]'", runs):
        assert extra in setup_arguments()["extras_require"]
    program, command = re.findall(r'"([^"]+)"', instructions[-1][1])
    assert instructions[-1][0] == "CMD" and program == "omr" and command in OMR.commands


def test_all_files_of_the_packages_reach_an_image_and_no_other_kind():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not [file for file in listed.stdout.split() if is_ignored(file)]
    unwanted = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    unwanted = [name.replace("*", "x") for name in unwanted if name not in (".coverage", "__pycache__")]
    assert all(is_ignored(name) for name in [*unwanted, ".git/config", "rl/__pycache__", ".env", "a/id_rsa"])


@image
def test_an_image_runs_as_a_user_without_rights_and_holds_no_secret(name: str):
    instructions = read_instructions(name)
    *_, user = (rest for first, rest in instructions if first == "USER")
    assert user.isdigit() and int(user) > 0, "a number, which Kubernetes can compare"
    set_here = " ".join(rest for first, rest in instructions if first in ("ARG", "ENV"))
    assert not re.search(r"token|secret|password|key", set_here, re.I)


def test_pins_of_the_gpu_image_are_within_what_setup_allows():
    pins = dict(rest.split("=") for first, rest in read_instructions("Dockerfile") if first == "ARG")
    wanted = {r.name: r for r in map(Requirement, setup_arguments()["extras_require"]["gpu"])}
    for package in ("torch", "transformer-engine", "megatron-core"):
        pin = pins[package.upper().replace("-", "_")]
        assert pin in wanted[package].specifier, f"{package}=={pin} is not {wanted[package]}"
    base = next(rest for first, rest in read_instructions("Dockerfile") if first == "FROM")
    cuda = re.match(r"nvidia/cuda:(\d+)\.", base)
    assert cuda and f"core_cu{cuda[1]}" in wanted["transformer-engine"].extras, "one CUDA in all parts"


def test_cpu_image_is_set_up_as_make_does():
    runs = [rest for first, rest in read_instructions("Dockerfile.cpu") if first == "RUN"]
    recipe = re.search(r"^setup:\n\t@\$\(PYTHON\) (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert recipe and any(f"python3 {recipe[1]}" in run for run in runs)
