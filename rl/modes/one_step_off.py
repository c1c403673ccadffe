"""Trains a step while the groups of the next one are generated with the weights before it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from rl.config import SamplingConfig
from rl.modes.parts import RunParts
from rl.prompts.stream import PromptStream
from rl.rewards.scorer import OnReply
from rl.rollout.calls import EngineDied, Request
from rl.rollout.collect import Collector
from rl.rollout.manager import RolloutManager
from rl.rollout.solutions import with_solutions
from rl.types import Prompt, Responses

log = logging.getLogger(__name__)


def run_one_step_off(run: RunParts) -> None:
    """Trains until the last step, or a stop; the learner knows the steps done.

    Step k learns from groups of the weights before step k - 1, so one version old; the first, from groups of its own.
    The groups of the next step are saved with a checkpoint, so that a run that stops and resumes equals a whole one.
    """
    config, learner, engines, scorer = run.config, run.learner, run.engines, run.scorer
    generate, collect = scorer.scoring(AskBeside(engines)), with_solutions(config, scorer).collect
    collector = Collector(config, PromptStream(config), generate, collect)
    collector.load(learner.first_step, learner.state)
    run.start_engines()
    thread = ThreadPoolExecutor(1, thread_name_prefix="collect")
    try:
        for step in learner.steps():
            timer = run.status.time_step(step)
            if (collected := collector.take_ahead()) is None:
                first = thread.submit(collector.collect, step, timer)
                engines.wait([first])
                collected = first.result()
            ahead = [thread.submit(collector.collect_ahead, step + 1)] if step + 1 < config.steps else []
            run.held_out.start(step, engines)
            trained = learner.learn(step, collected, timer)
            measured = run.held_out.finish()
            with timer.phase("wait"):
                wait_ahead(engines, ahead, step)
            with timer.phase("sync"):
                engines.update_weights(step + 1)
            measured |= run.held_out.measure_last(step + 1, engines)
            learner.end(step, collected, trained | measured | run.measure_engines(), timer, collector.save)
    finally:
        thread.shutdown(wait=False)  # engines that are closed end what it waits for


def wait_ahead(engines: RolloutManager, ahead: Sequence[Future[None]], step: int) -> None:
    """Waits for the groups of the next step after the trainer has learned from `step`.

    It has no longer the weights that they are of, so engines in the place of dead ones get none. Where none is left
    that has these weights, the rest is generated with the new ones.
    """
    try:
        engines.wait(ahead, replaces_dead=False)
    except EngineDied as died:
        log.warning(f"what is missing of step {step + 1} is generated with the weights after {step}: {died}")
        engines.update_weights(step + 1)
        engines.wait(ahead)
    for future in ahead:
        future.result()


class AskBeside:
    """RolloutManager.generate for a thread beside the trainer's, which alone can have weights sent to new engines."""

    def __init__(self, engines: RolloutManager) -> None:
        self._engines = engines

    def __call__(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, step_seed: int, on_reply: OnReply
    ) -> list[Responses]:
        requests = [Request(prompt=prompt, sampling=sampling, seed=step_seed) for prompt in prompts]
        futures = self._engines.submit(requests)
        prompt_of = dict(zip(futures, prompts, strict=True))
        for future in as_completed(futures):
            on_reply(prompt_of[future], future.result())
        return [future.result() for future in futures]
