"""Held-out accuracy while RL runs: asked while the trainer trains, with the weights that the engines then have.

Engines are idle while the trainer trains, and a thread asks them. So training waits only for what takes longer than its
own step. The questions and their seeds are the same each time, and what training samples does not depend on it.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

from data_pipeline.errors import BadSample
from rl.config import RLConfig
from rl.evaluation.run import check_any
from rl.evaluation.summary import summarize
from rl.groups import build_records
from rl.prompts.stream import load_prompt_limits, read_prompts
from rl.rewards.scorer import Scorer
from rl.rollout.calls import EngineDied
from rl.rollout.collect import Generate
from rl.rollout.manager import RolloutManager
from rl.types import Group, Responses

log = logging.getLogger(__name__)

SEED = -1
"""In the place of a step's number, so that training draws from other seeds."""


class HeldOut:
    """Measures held-out accuracy from time to time. Close it after the engines: that ends what it waits for."""

    def __init__(self, config: RLConfig, scorer: Scorer) -> None:
        """Reads the questions, if there are any.

        Raises:
            ValueError: `config.held_out.shards` has no question that can be asked.
        """
        self._config, self._scorer, self._seed = config.held_out, scorer, config.seed
        self._sampling = replace(
            config.sampling,
            n=self._config.n,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            stages=(),
        )
        self._questions = []
        if shards := self._config.shards:
            questions = read_prompts(shards, load_prompt_limits(config), self._config.limit)
            check_any(shards, questions)
            self._questions = [(replace(prompt, shards=shards), fault) for prompt, fault in questions]
            for prompt, fault in questions:
                if fault:
                    log.warning(
                        f"held-out question {prompt.ref.id} cannot be asked and counts as wrong: {fault}"
                    )
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
        if self._config.is_due(step) or self._is_missed:
            generate = self._scorer.scoring(partial(engines.generate, replaces_dead=False))
            self._running = self._thread.submit(self._measure, generate)
            if self._shares_devices:
                wait([self._running])

    def finish(self) -> dict[str, float]:
        """Returns the metrics, if it was started; waits for them.

        Where all engines have died, it is measured after the next step.
        """
        if self._running is None:
            return {}
        started = time.perf_counter()
        try:
            metrics = self._running.result()
            self._is_missed = False
        except EngineDied as error:
            log.warning(f"held-out accuracy is measured a step later, as no engine is left: {error}")
            metrics, self._is_missed = {}, True
        self._running = None
        return metrics | {"seconds_held_out": time.perf_counter() - started}

    def close(self) -> None:
        """Waits until nothing is asked any more; what is being scored is dropped."""
        self._scorer.drop()
        self._thread.shutdown(cancel_futures=True)

    def _measure(self, generate: Generate) -> dict[str, float]:
        groups = self._ask(generate)
        summary = summarize([build_records(group) for group in groups], seed=self._seed)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        low, high = summary.ci95
        return {
            "held_out_accuracy": summary.accuracy,
            "held_out_low": low,
            "held_out_high": high,
            "held_out_len": summary.length.mean,
            "held_out_truncated": summary.truncated / max(1, len(rollouts)),
            "held_out_version": min((rollout.oldest_version for rollout in rollouts), default=-1),
        }

    def _ask(self, generate: Generate) -> list[Group]:
        """Returns the scored responses to each question; those that cannot be asked have none, and count as wrong."""
        prompts = [prompt for prompt, fault in self._questions if not fault]
        replies = dict(zip(prompts, generate(prompts, self._sampling, SEED), strict=True))
        found = [(replies.get(prompt, Responses()), fault) for prompt, fault in self._questions]
        faults = [BadSample(r.fault, r.detail) if r.fault else fault for r, fault in found]
        asked = zip(self._questions, found, strict=True)
        groups = self._scorer.collect([(prompt, r.rollouts) for (prompt, _), (r, _) in asked])
        return [replace(group, fault=fault) for group, fault in zip(groups, faults, strict=True)]
