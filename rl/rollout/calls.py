"""What the manager and its engines say to each other: requests, reports, and the functions that reach an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from data_pipeline.failures import RankError
from rl.config import SamplingConfig
from rl.types import Prompt, Responses

E = TypeVar("E", bound=Hashable)  # an engine
Resent = tuple[Mapping[str, str], Mapping[str, str]] | str
"""Digests of an engine's tensors by name, before and after its weights were sent again; or why there are none."""


class EngineDied(RankError):
    """An engine's process has ended, and what it had in hand is lost. The message says why."""


class NoRoom(RankError):
    """Raised by EngineCalls.start: no node has room for another engine. The message says what the nodes have."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to be answered `sampling.n` times. The draws depend on it, the seed and the engine's own seed alone."""

    prompt: Prompt
    sampling: SamplingConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an engine has done since it started, and the prompts that it finished since its last report."""

    finished: Sequence[tuple[int, Responses | Exception]] = ()
    """Numbers of requests, each with its responses, or with why it could not be asked."""
    taken: int
    """Responses that it was asked for, also those that it has finished."""
    running: int
    """Responses that it generates."""
    waiting: int
    """Responses for which it has no slot yet."""
    tokens: int
    """Tokens sampled."""
    version: int | None
    """Of its weights; None after an update that failed."""


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What is known of an engine, as last reported."""

    number: int
    address: str
    state: Literal["starting", "idle", "generating", "updating", "lost"]
    version: int | None
    """Of its weights; None: it was never given any, and has those of the model folder."""
    prompts: int
    """That it has in hand."""
    running: int
    """Responses that it generates."""
    tokens: int
    """Sampled since it started."""
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class EngineCalls(Generic[E]):
    """Functions that start, ask and stop engines of kind E. All but `start`, `update` and `poll` return at once.

    The manager calls `update` and `watch` in the thread that waits for responses, the others in any; `start` after the
    first ones in a thread of its own.
    """

    start: Callable[[], E]
    """Returns a new engine with the weights of the model folder; may wait for a place. Raises NoRoom."""
    stop: Callable[[E], object]
    """Ends an engine, also one that is dead already."""
    submit: Callable[[E, Sequence[tuple[int, Request]]], object]
    """Asks an engine; the numbers come back in its reports."""
    poll: Callable[[float], Sequence[tuple[E, Report | Exception]]]
    """Returns the reports that have arrived, or EngineDied, or what an engine raised; waits so many seconds for one."""
    update: Callable[[Sequence[E], int], Sequence[EngineDied | None]]
    """Gives these engines the weights of a version; returns for each None, or how it died. Waits for them."""
    resend: Callable[[Sequence[E], int], Sequence[Resent]] = lambda engines, version: (
        ["no tensors"] * len(engines)
    )
    """Sends these engines the weights of a version that they should have. Waits for them."""
    has_started: Callable[[E], bool] = lambda engine: True
    give_up: Callable[[], object] = lambda: None
    """Ends the wait of `start`, in another thread, soon."""
    address: Callable[[E], str] = lambda engine: ""
    """Returns the node of an engine."""
    watch: Callable[[], object] = lambda: None
    """Raises if what gives the weights has failed."""
    clock: Callable[[], float] = time.monotonic
