"""What the live page knows of a run at a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator

from launch.report.load import Metrics, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """An engine, as status.json says; see EngineState of rl/rollout/calls.py."""

    number: int
    state: str  # starting | idle | generating | updating | lost
    address: str = ""
    version: int | None = None
    prompts: int = 0
    running: int = 0  # responses
    tokens: int = 0
    tokens_per_second: Annotated[float, BeforeValidator(lambda value: value or 0.0)] = (
        0.0  # null: not a number
    )


@dataclass(frozen=True, kw_only=True)
class LoggedWarning:
    """A warning that the driver logged."""

    time: float  # since the epoch, as all times here
    text: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """RUN/status.json of an RL run, see rl/modes/status.py."""

    time: float  # of the write
    started: float = 0.0
    step: int = -1
    steps: int = 0
    phase: str = ""
    phase_since: float = 0.0
    engines: tuple[EngineStatus, ...] = ()
    groups: dict[str, int] = field(default_factory=dict)
    warnings: tuple[LoggedWarning, ...] = ()
    ended: str = ""  # done | stopped | failed; empty: not yet
    reason: str = ""


class PlacedGroup(NamedTuple):
    """A group of rollouts.jsonl, and its place among those of its step, which is its images' address."""

    place: int
    group: RolloutGroup


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run as its files say."""

    name: str
    config: Mapping[str, object] = field(default_factory=dict)  # by names on the command line
    metrics: Metrics | None = None  # rows may be means over several steps
    recent: tuple[tuple[int, dict[str, float]], ...] = ()  # the last steps, each with its own row
    groups: tuple[PlacedGroup, ...] = ()  # of rollouts.jsonl, the newest last
    status: RunStatus | None = None
    written: float = 0.0  # when a file was last written; 0: there is none
    bad_lines: int = 0

    @property
    def is_rl(self) -> bool:
        """Whether it is a run of RL; of what has written nothing yet, its config decides."""
        return "reward" in self.recent[-1][1] if self.recent else "sampling.n" in self.config

    @property
    def steps_done(self) -> int:
        return self.recent[-1][0] + 1 if self.recent else 0

    @property
    def steps(self) -> int:
        """Steps that the run is to do; 0: not known."""
        steps = self.config.get("steps", self.status.steps if self.status else 0)
        return steps if isinstance(steps, int) else 0
