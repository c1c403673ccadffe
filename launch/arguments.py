"""Finds the command that the first words name; tyro fills the parameters of its function from the other words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from inspect import cleandoc
from typing import TypeAlias, TypeVar

import tyro

from data_pipeline.config import check_address
from data_pipeline.curate.config import CurateConfig
from data_pipeline.distill.config import DistillConfig

T = TypeVar("T")

FLAT = tyro.conf.arg(name="")
"""Annotates the config of a command: its fields are the command's own options, without a prefix."""


@dataclass(frozen=True, kw_only=True)
class CommandGroup:
    """A command whose next word chooses one of several."""

    doc: str
    """Shown in the help; the lines after `Examples:` end it, and the help of commands that have none."""
    commands: Mapping[str, Command] | Callable[[], Mapping[str, Command]]
    """By name; a function where finding them imports more than help should."""
    kind: str = "command"
    by_preset: bool = False
    """The option --preset names the command, by default the first, and not the next word."""


@dataclass(frozen=True, kw_only=True)
class WordsCommand:
    """A command that reads the words which follow it by itself."""

    doc: str
    call: Callable[[Sequence[str], str], None]
    """Gets these words, and what precedes them."""


Command: TypeAlias = Callable[..., None] | CommandGroup | WordsCommand


def with_config(command: Callable[..., None], config: object, doc: str | None = None) -> Command:
    """Returns the command with the values of `config` as its defaults."""
    bound = partial(command, config=config)
    bound.__doc__ = doc or command.__doc__
    return bound


def recipes(command: Callable[..., None], configs: Mapping[str, Callable[[], object]]) -> CommandGroup:
    """Returns the command with a base config to choose by the next word."""
    commands = {name: with_config(command, config(), config.__doc__) for name, config in configs.items()}
    return CommandGroup(doc=command.__doc__ or "", commands=commands, kind="recipe")


def presets(command: Callable[..., None], configs: Mapping[str, object]) -> CommandGroup:
    """Returns the command with a base config to choose by --preset."""
    commands = {name: with_config(command, config) for name, config in configs.items()}
    return CommandGroup(doc=command.__doc__ or "", commands=commands, kind="preset", by_preset=True)


def run(command: Command, words: Sequence[str], *, prog: str = "omr", examples: str = "") -> None:
    """Runs a command with the fields that `words` set.

    Raises:
        ValueError: there is no command of that name, or a config refuses a value.
        SystemExit: after help, or with 2 for a mistake in a field; a typo names the nearest field.
    """
    if isinstance(command, WordsCommand):
        command.call(words, prog)
        return
    text, _, own_examples = _doc(command).partition("Examples:\n")
    description, examples = text.partition("Args:\n")[0].strip(), own_examples or examples
    asked = not {"-h", "--help"}.isdisjoint(words)
    if not isinstance(command, CommandGroup):
        _call(command, words, prog=prog, description=description, examples=examples if asked else "")
        return
    commands = command.commands() if callable(command.commands) else command.commands
    if command.by_preset:
        name, words = _preset(next(iter(commands)), words, prog)
        run(pick("preset", commands, name), words, prog=prog, examples=examples)
    elif words and not words[0].startswith("-"):
        chosen = pick(command.kind, commands, words[0])
        run(chosen, words[1:], prog=f"{prog} {words[0]}", examples=examples)
    else:
        parts = [
            f"usage: {prog} {command.kind.upper()} ...\n\n{description}\n\n{command.kind}, one of:",
            *(
                f"  {name:<{max(map(len, commands))}}  {_doc(each).splitlines()[0]}"
                for name, each in commands.items()
            ),
            f"\nexamples:\n{examples}",
        ]
        print("\n".join(parts), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)


def pick(kind: str, choices: Mapping[str, T], name: str) -> T:
    """Returns the choice of that name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in choices:
        near = get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no {kind} {name!r}; {hint}there are {', '.join(choices)}")
    return choices[name]


def _call(
    command: Callable[..., None], words: Sequence[str], *, prog: str, description: str, examples: str
) -> None:
    for word in words:
        check_address(word)
    command = _add_teachers(command, words)
    markers = (tyro.conf.PositionalRequiredArgs, tyro.conf.PositionalMetavarFromFieldName)
    try:
        tyro.cli(
            command, args=words, prog=prog, description=description, use_underscores=True, config=markers
        )
    except SystemExit as leave:
        if examples and not leave.code:
            print(f"examples:\n{examples}")
        raise


def _add_teachers(command: Callable[..., None], words: Sequence[str]) -> Callable[..., None]:
    """Returns the command with as many teachers as the words number; a further one begins as the last, but its name.

    tyro gives a tuple of configs as many entries as its default has.
    """
    config = command.keywords.get("config") if isinstance(command, partial) else None
    if not isinstance(config, CurateConfig | DistillConfig):
        return command
    numbers = [int(number) for word in words for number in re.findall(r"^--teachers\.(\d{1,2})\.", word)]
    known, count = config.teachers, max(numbers, default=0) + 1
    if count <= len(known):
        return command
    names = [
        *(teacher.name or str(number) for number, teacher in enumerate(known)),
        *map(str, range(len(known), count)),
    ]
    models = known + known[-1:] * (count - len(known))
    teachers = tuple(replace(model, name=name) for model, name in zip(models, names, strict=True))
    return partial(command, config=replace(config, teachers=teachers))


def _preset(default: str, words: Sequence[str], prog: str) -> tuple[str, Sequence[str]]:
    """Returns the value of --preset, and the other words."""
    # not tyro's overridable_config_cli: it takes the name as the first word only

    def value(*, preset: str = default) -> str:
        return preset

    return tyro.cli(value, args=words, prog=prog, return_unknown_args=True, add_help=False)


def _doc(command: Command) -> str:
    return cleandoc(command.__doc__ or "" if callable(command) else command.doc)
