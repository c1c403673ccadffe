"""Stages of a folder: each runs once, and an interrupted demo or study continues where it stopped."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from data_pipeline.files import claim_folder, read_json, write_json
from launch.config import DemoConfig

SHARED = ("out", "algorithm")
"""Settings that may differ between demos of one folder: each algorithm has RL stages of its own."""
MANIFEST, TIMES = "demo.json", "times.json"


class Stages:
    """The stages of one folder, and the seconds that each took. Threads may run several at once."""

    def __init__(self, root: Path, title: str) -> None:
        self.root, self.title = root, title
        times = root / TIMES
        saved = read_json(times) if times.exists() else {"seconds": {}, "interrupted": {}}
        self.seconds: dict[str, float] = saved["seconds"]
        self._interrupted: dict[str, float] = saved["interrupted"]  # seconds of attempts that did not finish
        self._lock = Lock()

    def stage(self, name: str, result: str, run: Callable[[], None]) -> None:
        """Runs a stage unless the file `result`, its last, is there."""
        if (self.root / result).exists():
            self.say(f"{name}: done before, {self.root / result}")
            return
        started, is_done = time.perf_counter(), False
        try:
            run()
            is_done = True
        finally:
            self._count(name, time.perf_counter() - started, is_done)
        self.say(f"{name}: {self.seconds[name]:.0f} s")

    def say(self, text: str) -> None:
        """Prints a line, whole also where several threads do."""
        with self._lock:
            print(f"[{self.title}] {text}", flush=True)

    def run_omr(self, *words: str) -> None:
        """Runs an `omr` command in its own process."""
        self.say(f"omr {shlex.join(words)}")
        subprocess.run([sys.executable, "-m", "launch.cli", *words], check=True)

    def _count(self, name: str, seconds: float, is_done: bool) -> None:
        """Adds the seconds of an attempt to those before it, and saves all."""
        with self._lock:
            total = round(self._interrupted.pop(name, 0.0) + seconds, 1)
            (self.seconds if is_done else self._interrupted)[name] = total
            write_json(self.root / TIMES, {"seconds": self.seconds, "interrupted": self._interrupted})


class Demo(Stages):
    """The stages of one demo folder."""

    def __init__(self, config: DemoConfig) -> None:
        """Writes the settings to the folder, which may already hold results of some stages.

        Raises:
            ValueError: it holds a demo with other settings.
        """
        self.config = config
        settings = {name: value for name, value in asdict(config).items() if name not in SHARED}
        for name in ("base", "video"):  # which folders of before there was a choice lack
            if settings[name] == getattr(DemoConfig, name):
                del settings[name]
        claim_folder(Path(config.out), MANIFEST, settings, adopt=True)
        super().__init__(Path(config.out), "demo")

    def omr(self, *words: str, recipe: object, **values: object) -> None:
        """Runs an `omr` command in its own process, with the values that differ from those of its recipe."""
        named = {key.replace("__", "."): value for key, value in values.items()}
        self.run_omr(*words, *list_options(recipe, named))


def list_options(recipe: object, values: Mapping[str, object]) -> list[str]:
    """Returns the options that give a recipe these values, by field; None keeps the recipe's."""
    options = []
    for field, value in values.items():
        if value is not None and value != _read_field(recipe, field):
            words = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
            options += [f"--{field}"] if value is True else [f"--{field}", *words]
    return options


def _read_field(recipe: object, field: str) -> object:
    """Returns the value of a field such as loader.seed or teachers.0.k."""
    value: Any = recipe
    for name in field.split("."):
        value = value[int(name)] if name.isdigit() else getattr(value, name)
    return value
