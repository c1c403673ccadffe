"""Trains a step while the groups of the next one are generated with the weights before it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rl.modes.parts import RunParts
from rl.prompts.stream import PromptStream
from rl.rollout.collect import Collector
from rl.rollout.solutions import collecting
from rl.timer import PhaseTimer


def run_one_step_off(run: RunParts) -> None:
    """Trains until the last step, or a stop; the learner knows the steps done.

    Step k learns from groups of the weights before step k - 1, so one version old; the first, from groups of its own.
    The groups of the next step are saved with a checkpoint, so that a run that stops and resumes equals a whole one.
    """
    config, learner, engines, scorer = run.config, run.learner, run.engines, run.scorer
    # a new engine would need the trainer, which is busy, to get the weights
    generate = scorer.scoring(partial(engines.generate, replaces_dead=False))
    collect = collecting(config, scorer)
    collector = Collector(config, PromptStream(config), generate, collect)
    collector.load(learner.first_step, learner.state)
    engines.update_weights(learner.first_step)
    thread = ThreadPoolExecutor(1, thread_name_prefix="collect")
    try:
        for step in learner.steps():
            timer = PhaseTimer()
            collected = collector.take_ahead() or collector.collect(step, timer)
            ahead = [thread.submit(collector.collect_ahead, step + 1)] if step + 1 < config.steps else []
            trained = learner.learn(step, collected, timer)
            with timer.phase("wait"):
                [future.result() for future in ahead]
            run.held_out.start(step, engines)
            measured = run.held_out.finish()
            with timer.phase("sync"):
                engines.update_weights(step + 1)
            learner.end(step, collected, trained | measured | engines.counts, timer, collector.save)
    finally:
        thread.shutdown(wait=False)  # engines that are closed end what it waits for
