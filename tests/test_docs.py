"""The documentation names commands, options, files and Python names that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from launch.arguments import Command, CommandGroup, WordsCommand, run
from launch.cli import OMR
from launch.launch_command import LaunchOptions, replace_functions

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *ROOT.glob("docs/**/*.md"),
]
FOLDERS = (
    "data_pipeline",
    "megatron_omr",
    "rl",
    "launch",
    "tests",
    "benchmarks",
    "requirements",
    "docs",
    "slurm",
)
VALUES = {
    "CORPUS": "messages",
    "RECIPE": "own",
    "BENCHMARK": "aime24",
    "NAME": "rollouts",
    "N": "1",
    "$TEACHER": "http://teacher/v1",
    "...": "--seed=1",
}
page_of_docs = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_effect(command: Command, seen: dict[str, Callable[..., None]]) -> Command:
    """Returns the command with functions that do nothing with their options; adds each function to `seen`."""
    if isinstance(command, CommandGroup):
        found = command.commands() if callable(command.commands) else command.commands
        return replace(command, commands={name: without_effect(each, seen) for name, each in found.items()})
    if isinstance(command, WordsCommand):  # omr launch
        _, submitted = command.call.args  # pyright: ignore
        parsing = replace_functions(submitted, lambda given, options: None)
        return replace(command, call=lambda words, prog: run(parsing, words, prog=prog))
    function, bound = (command.func, command.keywords) if isinstance(command, partial) else (command, {})

    @wraps(function)
    def nothing(*args: Any, **kwargs: Any) -> None: ...

    seen[function.__name__] = partial(nothing, **bound)
    return seen[function.__name__]


def read_code(page: Path) -> Iterator[str]:
    """Yields the lines of blocks of shell commands or plain text, and the pieces of code inside sentences."""
    for i, part in enumerate(re.split(r"^ *```(.*)$", page.read_text(encoding="utf-8"), flags=re.M)):
        if i % 4 == 0:
            yield from re.findall(r"`([^`]+)`", part)
        elif i % 4 == 1:
            language = part.partition(" ")[0]
        elif i % 4 == 2 and language in ("", "bash"):
            yield from part.splitlines()


@page_of_docs
def test_commands_have_known_options_and_valid_values(page: Path, capsys: pytest.CaptureFixture[str]):
    text = "\n".join(read_code(page))
    text = re.sub(r"^sbatch .*slurm/(\w+)\.sbatch ", r"omr \1 ", text, flags=re.M)
    for line in re.findall(r"^(?:torchrun .* -m launch\.cli|omr) ([a-z].*)", text, re.M):
        words = [VALUES.get(word, word) for word in shlex.split(line, comments=True)]
        only_named = all(re.fullmatch(r"[a-z][\w-]*", word) for word in words)
        try:
            run(without_effect(OMR, {}), [*words, "--help"] if only_named else words)
        except SystemExit as leave:
            assert not leave.code, f"{line}: {capsys.readouterr().err}"


def test_options_in_sentences_exist(capsys: pytest.CaptureFixture[str]):
    known = {"--preset", "--FIELD", "--filters", "--dedup"}
    known |= {f"--{field.name.replace('_', '-')}" for field in fields(LaunchOptions)}
    without_effect(OMR, functions := {})
    for function in functions.values():
        with pytest.raises(SystemExit):
            run(function, ["--help"])
        known |= set(re.findall(r"--[\w.]+", capsys.readouterr().out))
    named = {(o, page.name) for page in PAGES for o in re.findall(r"`(--[\w.-]+)", page.read_text("utf-8"))}
    assert not {option for option in named if option[0] not in known}


@cache
def list_files() -> list[str]:
    found = [ROOT / "setup.py", *(path for name in FOLDERS for path in (ROOT / name).rglob("*"))]
    return [str(path) for path in found if path.suffix != ".pyc"]


@page_of_docs
def test_named_files_and_python_names_exist(page: Path):
    pattern = rf"(?<![\w/])(?:{'|'.join(FOLDERS)})/[\w./-]*\w|[\w/]+\.py\b"
    names = re.findall(pattern, "\n".join(read_code(page)))
    lost = [name for name in names if not any(file.endswith(f"/{name}") for file in list_files())]
    text = page.read_text(encoding="utf-8")
    lost += [to for to in re.findall(r"\]\((?!http)([^)#]+)", text) if not (page.parent / to).exists()]
    for module, imported in re.findall(r"^from ([\w.]+) import (\w+)$", text, re.M):
        lost += [] if hasattr(import_module(module), imported) else [f"{module}.{imported}"]
    assert not lost
