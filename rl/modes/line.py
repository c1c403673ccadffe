"""Prompts in the order in which they were asked, until a step has trained on their groups."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rl.config import RLConfig
from rl.types import Group, Prompt


@dataclass(eq=False, slots=True)
class Place:
    """A prompt that was asked."""

    number: int  # of all prompts that the run has asked: it seeds the draws
    prompt: Prompt
    step: int  # that is to train on its group, if all before it have a signal
    group: Group | None = None  # once it is scored
    counts: bool = True  # false: the group has no signal, and another prompt is asked in its stead
    is_gone: bool = False  # it had a fault


class Taken(NamedTuple):
    """The groups of a step."""

    asked: list[Group]  # up to the last that is trained on, in the order of asking
    counted: list[Group]  # those that fill the step


class Line:
    """The prompts that were asked and not trained on, and how many more may be asked.

    A group is trained on after all that were asked before it, so it is known at once how old it can become: fewer than
    (1 + max_staleness) * prompts_per_step prompts are asked and not trained on whenever another one is asked.
    All operations take constant time on average.
    """

    def __init__(self, config: RLConfig, *, steps_done: int) -> None:
        rules = config.algorithm.dynamic_sampling
        self.asked = 0  # prompts since the run began
        self._steps_done, self._last_step, self._wanted = steps_done, config.steps, config.prompts_per_step
        self._limit = max_asked(config)
        self._drops = rules.enabled
        self._max_dropped = rules.max_tries * self._wanted
        self._ready: deque[Place] = deque()  # all scored
        self._rest: deque[Place] = deque()  # behind them; the first is not scored
        self._num_counted = 0  # places that count, of both
        self._num_ready = 0  # of these the ready ones
        self._num_dropped = 0  # places that do not count
        self._num_training = 0  # groups of the running step

    def __iter__(self) -> Iterator[Place]:
        """Yields the places in order."""
        yield from self._ready
        yield from (place for place in self._rest if not place.is_gone)

    @property
    def room(self) -> int:
        """How many prompts may be asked now; the last steps need no more than they train on."""
        if self._is_exhausted:
            return 0
        limit = min(self._limit, (self._last_step - self._steps_done) * self._wanted)
        return max(0, limit - self._num_counted - self._num_training)

    @property
    def num_ready(self) -> int:
        """Groups that could be trained on, and wait."""
        return self._num_ready

    @property
    def num_waiting(self) -> int:
        """Prompts that were asked and may be trained on, in no step yet; with those that are ready."""
        return self._num_counted

    def add(self, prompt: Prompt) -> Place:
        """Adds a prompt at the end."""
        self.asked += 1
        step = self._steps_done + (self._num_counted + self._num_training) // self._wanted
        return self.add_again(prompt, self.asked - 1, step)

    def add_again(self, prompt: Prompt, number: int, step: int) -> Place:
        """Adds a prompt at the end that had its number and step before the run was resumed."""
        place = Place(number, prompt, step)
        self._rest.append(place)
        self._num_counted += 1
        return place

    def remove(self, place: Place) -> None:
        """Takes out a prompt that cannot be asked."""
        place.is_gone = True
        self._num_counted -= 1
        self._sort()

    def finish(self, place: Place, group: Group, has_signal: bool) -> None:
        """Notes the group of a place. Without a signal it fills no step under dynamic sampling."""
        place.group, place.counts = group, has_signal or not self._drops
        if not place.counts:
            self._num_counted -= 1
            self._num_dropped += 1
        self._sort()

    def take(self) -> Taken | None:
        """Returns the groups of the next step once all are scored, None before. Call end_step() after the step.

        After `max_tries` * prompts_per_step groups without a signal, the step has those that there are.
        """
        if self._num_ready < self._wanted and (not self._is_exhausted or self._rest):
            return None
        asked, counted = list[Group](), list[Group]()
        while self._ready and len(counted) < self._wanted:
            place = self._ready.popleft()
            assert place.group is not None
            asked.append(place.group)
            if place.counts:
                counted.append(place.group)
        self._num_ready -= len(counted)
        self._num_counted -= len(counted)
        self._num_dropped -= len(asked) - len(counted)
        self._num_training = self._wanted  # also where there were fewer: the others' turn is the next step
        return Taken(asked, counted)

    def end_step(self, steps_done: int) -> None:
        """Makes room for the prompts of later steps."""
        self._steps_done, self._num_training = steps_done, 0

    @property
    def _is_exhausted(self) -> bool:
        return self._drops and self._num_dropped >= self._max_dropped

    def _sort(self) -> None:
        """Moves what is scored from the rest's beginning."""
        while self._rest and (self._rest[0].is_gone or self._rest[0].group is not None):
            place = self._rest.popleft()
            if not place.is_gone:
                self._ready.append(place)
                self._num_ready += place.counts


def max_asked(config: RLConfig) -> int:
    """Returns how many prompts may be asked and not trained on: (1 + max_staleness) * prompts_per_step."""
    return math.floor((1 + config.rollout.max_staleness) * config.prompts_per_step + 1e-9)
