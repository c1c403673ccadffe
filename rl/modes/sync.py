"""Generates and trains in turn, so that rollouts are of the weights that learn from them."""

from __future__ import annotations

from rl.modes.parts import RunParts
from rl.prompts.stream import PromptStream
from rl.rollout.collect import Collector
from rl.rollout.solutions import with_solutions


def run_sync(run: RunParts) -> None:
    """Trains until the last step, or a stop; the learner knows the steps done.

    Only groups that algorithm.dynamic_sampling carries over are of older weights.
    """
    config, learner, engines, scorer = run.config, run.learner, run.engines, run.scorer
    generate, collect = scorer.scoring(engines.generate), with_solutions(config, scorer).collect
    collector = Collector(config, PromptStream(config), generate, collect)
    collector.load(learner.first_step, learner.state)
    run.start_engines()
    for step in learner.steps():
        timer = run.status.time_step(step)
        collected = collector.collect(step, timer)
        run.held_out.start(step, engines)
        trained = learner.learn(step, collected, timer)
        measured = run.held_out.finish()
        with timer.phase("sync"):
            engines.update_weights(step + 1)
        measured |= run.held_out.measure_last(step + 1, engines)
        learner.end(step, collected, trained | measured | run.measure_engines(), timer, collector.save)
