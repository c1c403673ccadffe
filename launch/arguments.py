"""Reads the words and options of a command line into a config; knows no command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from inspect import cleandoc
from typing import Any, TypeVar

import tyro

T = TypeVar("T")
Command = Callable[[list[str]], None]


def overview(commands: dict[str, Command]) -> str:
    """What `omr --help` prints: each command with the first line of its docstring."""
    width = max(map(len, commands))
    listed = "\n".join(f"  {name:<{width}}  {first_line(command)}" for name, command in commands.items())
    return f"""\
usage: omr COMMAND [ARGUMENTS] [--FIELD VALUE ...]

Post-training of multimodal reasoners: SFT and RL of Qwen2.5-VL on Megatron-Core, Ray and vLLM.

commands:
{listed}

`omr COMMAND --help` explains a command, `omr sft RECIPE --help` every field of a recipe.

examples:
  omr doctor
  omr demo
  omr sft demo --optim.lr 5e-4"""


def pick(kind: str, choices: dict[str, T], name: str) -> T:
    """The choice of that name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in choices:
        near = get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no {kind} {name!r}; {hint}there are {', '.join(choices)}")
    return choices[name]


def leading_word(
    command: Command, kind: str, choices: dict[str, Any], args: Sequence[str]
) -> tuple[str, list[str]]:
    """Split off a name, such as a recipe's; without one, or asked for help, list the choices and exit."""
    if args and not args[0].startswith("-"):
        pick(kind, choices, args[0])
        return args[0], list(args[1:])
    asked = bool({"-h", "--help"} & set(args))
    description, examples = _help(command)
    width = max(map(len, choices))
    listed = "\n".join(f"  {name:<{width}}  {first_line(choice)}" for name, choice in choices.items())
    print(
        f"{description}\n\n{kind}, one of:\n{listed}\n\n{examples}", file=sys.stdout if asked else sys.stderr
    )
    sys.exit(0 if asked else 2)


def parse(
    command: Command, name: str, target: Callable[..., T], args: Sequence[str], *, default: T | None = None
) -> T:
    """Fill `target` from `args`; fields without a default, or whose default is tyro.MISSING, are positional.

    A typo exits with 2 and names the nearest field; so does a value that the config refuses.
    """
    description, examples = _help(command)
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    try:
        return tyro.cli(
            target,
            args=args,
            prog=f"omr {name}",
            description=description,
            use_underscores=True,
            config=(tyro.conf.PositionalRequiredArgs,),
            **defaults,
        )
    except SystemExit as leave:
        if not leave.code:
            print(examples)
        raise


def first_line(documented: Callable[..., Any]) -> str:
    return cleandoc(documented.__doc__ or "").partition("\n")[0]


def _help(command: Command) -> tuple[str, str]:
    """(description, examples) from a command's docstring."""
    description, _, examples = cleandoc(command.__doc__ or "").partition("Examples:\n")
    return description.strip(), f"examples:\n{examples}"
