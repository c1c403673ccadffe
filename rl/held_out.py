"""Held-out accuracy while RL runs: asked while the trainer trains, with the weights that the engines then have.

Engines are idle while the trainer trains, and a thread asks them. So training waits only for what takes longer than its
own step. The questions and their seeds are the same each time, and what training samples does not depend on it.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import islice

from rl.config import RLConfig
from rl.evaluation.held_out_sets import load_sets, measure
from rl.rewards.scorer import Scorer
from rl.rollout.calls import EngineDied, Request
from rl.rollout.manager import RolloutManager
from rl.types import Group

log = logging.getLogger(__name__)

SEED = -1
"""In the place of a step's number, so that training draws from other seeds."""


class HeldOut:
    """Measures held-out accuracy from time to time. Close it after the engines: that ends what it waits for."""

    def __init__(self, config: RLConfig, scorer: Scorer) -> None:
        """Reads the questions, if there are any.

        Raises:
            ValueError: as load_sets.
        """
        self._config, self._scorer, self._seed = config.held_out, scorer, config.seed
        self._sets, self._steps = load_sets(config), config.steps
        self._is_missed = False
        self._shares_devices = config.rollout.placement == "colocated"
        self._running: Future[dict[str, float]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="held-out")

    def start(self, step: int, engines: RolloutManager) -> None:
        """Begins to ask the engines, where it is time after `step` steps; they must keep their weights until finish().

        Others may ask them meanwhile. Where one dies, the rest answers: a new one would need the trainer, which is
        busy, to get the weights.
        Where engines share the trainer's devices, it waits until they have answered.
        """
        if self._config.is_due(step, self._steps) or self._is_missed:
            self._running = self._thread.submit(self._measure, engines)
            if self._shares_devices:
                wait([self._running])

    def measure_last(self, step: int, engines: RolloutManager) -> dict[str, float]:
        """Returns the metrics of the engines' weights if these are after the last step; nothing after others."""
        if step < self._steps:
            return {}
        self.start(step, engines)
        return self.finish()

    def finish(self) -> dict[str, float]:
        """Returns the metrics, if it was started; waits for them.

        Where all engines have died, it is measured after the next step, if there is one.
        """
        if self._running is None:
            return {}
        started = time.perf_counter()
        try:
            metrics = self._running.result()
            self._is_missed = False
        except EngineDied as error:
            log.warning(
                f"held-out accuracy is missing, or measured a step later, as no engine is left: {error}"
            )
            metrics, self._is_missed = {}, True
        self._running = None
        return metrics | {"seconds_held_out": time.perf_counter() - started}

    def close(self) -> None:
        """Waits until nothing is asked any more; what is being scored is dropped."""
        self._scorer.drop()
        self._thread.shutdown(cancel_futures=True)

    def _measure(self, engines: RolloutManager) -> dict[str, float]:
        groups, found = iter(self._ask(engines)), dict[str, float]()
        for asked in self._sets:
            found |= measure(asked, list(islice(groups, len(asked.questions))), seed=self._seed)
        return found

    def _ask(self, engines: RolloutManager) -> list[Group]:
        """Returns a group for each question of all sets, in order; those that cannot be asked have no responses.

        All sets are asked at once, so that engines have work while the last responses of one of them end.
        """
        questions = [(asked, *question) for asked in self._sets for question in asked.questions]
        groups = [Group(prompt=prompt, rollouts=(), rewards=()) for _, prompt, _ in questions]
        good = [(place, asked, prompt) for place, (asked, prompt, fault) in enumerate(questions) if not fault]
        requests = [Request(prompt=prompt, sampling=asked.sampling, seed=SEED) for _, asked, prompt in good]
        scored: dict[int, Future[Group]] = {}
        with closing(engines.answer(requests, replaces_dead=False)) as replies:
            for number, responses in replies:
                place, asked, prompt = good[number]
                most = asked.sampling.max_tokens
                group = self._scorer.score(prompt, responses, max_tokens=most, asks_judge=asked.asks_judge)
                scored[place] = group
        for place, group in scored.items():
            groups[place] = group.result()
        return groups
