"""Stages of a demo folder: each runs once, and an interrupted demo continues where it stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

from data_pipeline.files import claim_folder, read_json, write_json
from launch.config import DemoConfig

SHARED = ("out", "algorithm")
"""Settings that may differ between demos of one folder: each algorithm has RL stages of its own."""
MANIFEST, TIMES = "demo.json", "times.json"


class Demo:
    """The stages of one demo folder, and the seconds that each took."""

    def __init__(self, config: DemoConfig) -> None:
        """Writes the settings to the folder, which may already hold results of some stages.

        Raises:
            ValueError: it holds a demo with other settings.
        """
        self.root, self.config = Path(config.out), config
        settings = {name: value for name, value in asdict(config).items() if name not in SHARED}
        for name in ("base", "video"):  # which folders of before there was a choice lack
            if settings[name] == getattr(DemoConfig, name):
                del settings[name]
        claim_folder(self.root, MANIFEST, settings, adopt=True)
        times = self.root / TIMES
        saved = read_json(times) if times.exists() else {"seconds": {}, "interrupted": {}}
        self.seconds: dict[str, float] = saved["seconds"]
        self._interrupted: dict[str, float] = saved["interrupted"]  # seconds of attempts that did not finish

    def stage(self, name: str, result: str, run: Callable[[], None]) -> None:
        """Runs a stage unless the file `result`, its last, is there."""
        if (self.root / result).exists():
            print(f"[demo] {name}: done before, {self.root / result}", flush=True)
            return
        started, before = time.perf_counter(), self._interrupted.get(name, 0.0)
        try:
            run()
        finally:
            self._interrupted[name] = round(before + time.perf_counter() - started, 1)
            self._save()
        self.seconds[name] = self._interrupted.pop(name)
        self._save()
        print(f"[demo] {name}: {self.seconds[name]:.0f} s", flush=True)

    def omr(self, *words: str, recipe: object, **values: object) -> None:
        """Runs an `omr` command in its own process, with the values that differ from those of its recipe."""
        options = []
        for key, value in values.items():
            field = key.replace("__", ".")
            if value is not None and value != attrgetter(field)(recipe):
                options += [f"--{field}"] if value is True else [f"--{field}", str(value)]
        print(f"[demo] omr {' '.join([*words, *options])}", flush=True)
        subprocess.run([sys.executable, "-m", "launch.cli", *words, *options], check=True)

    def _save(self) -> None:
        write_json(self.root / TIMES, {"seconds": self.seconds, "interrupted": self._interrupted})
