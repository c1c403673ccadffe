"""Trains while the engines generate all the time, and sends weights under half-done responses."""

from __future__ import annotations

from contextlib import closing

from rl.modes.feeder import Feeder
from rl.modes.parts import RunParts
from rl.prompts.stream import PromptStream
from rl.rollout.solutions import with_solutions


def run_async(run: RunParts) -> None:
    """Trains until the last step, or a stop; the learner knows the steps done.

    Groups are trained on in the order in which their prompts were asked, at most rollout.max_staleness steps later. A
    token may be of any version between. A checkpoint holds what was asked and not trained on: groups as they are, and
    prompts without one to be asked again, so that none is left out or used twice.
    """
    config, learner, engines, scorer = run.config, run.learner, run.engines, run.scorer
    score = with_solutions(config, scorer).score
    with closing(Feeder(config, PromptStream(config), engines.submit, score)) as feeder:
        feeder.load(learner.first_step, learner.state)
        run.start_engines()
        feeder.begin(learner.first_step)
        run.status.groups = feeder.count_groups
        for step in learner.steps():
            timer = run.status.time_step(step)
            with timer.phase("wait"):
                taken = feeder.take(step)
                engines.wait([taken])
                collected = taken.result()
            run.held_out.start(step, engines)
            trained = learner.learn(step, collected, timer)
            measured = run.held_out.finish()
            with timer.phase("sync"):
                engines.update_weights(step + 1)
            measured |= run.held_out.measure_last(step + 1, engines)
            feeder.begin(step + 1)
            learner.end(step, collected, trained | measured | run.measure_engines(), timer, feeder.save)
