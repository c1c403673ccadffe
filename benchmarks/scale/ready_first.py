"""Trains first on what is ready first, to compare with the feeder of rl/modes, which keeps the order of asking.

With a bound, a step takes those groups first whose prompts were asked that many steps ago, and waits for them.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from rl.config import RLConfig
from rl.modes.feeder import Feeder
from rl.modes.line import Line, Place, Taken
from rl.types import Group, Prompt


class ReadyFirstLine(Line):
    """The prompts that were asked and not trained on; finished ones in the order in which they were scored."""

    def __init__(self, config: RLConfig, *, bound: int | None) -> None:
        super().__init__(config, steps_done=0)
        self._bound = bound
        self._asked_at: dict[int, int] = {}  # steps that were done, by the number of the place; in order
        self._scored: deque[Place] = deque()

    def add(self, prompt: Prompt) -> Place:
        place = super().add(prompt)
        self._asked_at[place.number] = self._steps_done
        return place

    def finish(self, place: Place, group: Group, has_signal: bool) -> None:
        place.group = group
        self._scored.append(place)

    def take(self) -> Taken | None:
        due = self._count_due()
        scored_due = [place for place in self._scored if self._is_due(place.number)]
        if len(self._scored) < self._wanted or len(scored_due) < due:
            return None
        others = [place for place in self._scored if not self._is_due(place.number)]
        chosen = (scored_due + others)[: self._wanted]
        gone = {place.number for place in chosen}
        self._scored = deque(place for place in self._scored if place.number not in gone)
        self._rest = deque(place for place in self._rest if place.number not in gone)
        for number in gone:
            del self._asked_at[number]
        self._num_counted -= len(chosen)
        self._num_training = len(chosen)
        groups = [place.group for place in chosen if place.group is not None]
        return Taken(groups, groups)

    def _is_due(self, number: int) -> bool:
        return self._bound is not None and self._asked_at[number] + self._bound <= self._steps_done

    def _count_due(self) -> int:
        """Returns how many prompts the next step must train on; those that were asked first are the first."""
        due = 0
        for number in self._asked_at:
            if not self._is_due(number):
                break
            due += 1
        return due


class ReadyFirstFeeder(Feeder):
    """Feeder with a ReadyFirstLine."""

    def __init__(self, config: RLConfig, *args: Any, bound: int | None = None, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._line = ReadyFirstLine(config, bound=bound)
