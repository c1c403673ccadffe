"""Stages of a demo folder: each runs once, and an interrupted demo continues where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.config import DemoConfig
from launch.recipes.data import DEMO_ROOT


class Demo:
    """The stages of one demo folder, and how long each took."""

    def __init__(self, config: DemoConfig) -> None:
        self.root, self.seed = Path(config.out), config.seed
        self.root.mkdir(parents=True, exist_ok=True)
        self._state = self.root / "demo.json"
        saved = (
            json.loads(self._state.read_text())
            if self._state.exists()
            else {"seed": self.seed, "seconds": {}, "interrupted": {}}
        )
        if saved["seed"] != self.seed:
            raise ValueError(
                f"{self.root} holds a demo with seed={saved['seed']}, not {self.seed}; "
                f"choose another --out, or delete the folder"
            )
        self.seconds: dict[str, float] = saved["seconds"]
        self._interrupted: dict[str, float] = saved["interrupted"]  # seconds of attempts that did not finish
        self._save()

    def stage(self, name: str, result: str, run: Callable[[], None]) -> None:
        """Run a stage unless the file `result`, its last, is there."""
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

    def _save(self) -> None:
        draft = self._state.with_suffix(".tmp")
        state = {"seed": self.seed, "seconds": self.seconds, "interrupted": self._interrupted}
        draft.write_text(json.dumps(state))
        draft.replace(self._state)

    def omr(self, *words: str, **overrides: str) -> Callable[[], None]:
        """An `omr` command; overrides that only name the default folder and seed are left out."""
        options = [
            text for key, value in overrides.items() for text in (f"--{key.replace('__', '.')}", value)
        ]
        if self.root == Path(DEMO_ROOT):
            options = [] if self.seed == DemoConfig().seed else options

        def run() -> None:
            print(f"[demo] omr {' '.join([*words, *options])}", flush=True)
            subprocess.run([sys.executable, "-m", "launch.cli", *words, *options], check=True)

        return run
