"""The RL loop: ask -> reward -> advantage -> step -> weights to the engines, version + 1. `omr rl NAME` runs it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data_pipeline.ray_session import start_ray, stop_ray
from megatron_omr.faults.bad_steps import BadSteps
from megatron_omr.train.run_folder import claim_run
from megatron_omr.train.stop import StopRequest, exit_resumable, hold_stop
from rl.algorithms.advantage import TaskScale
from rl.config import RLConfig
from rl.groups import assign_advantages
from rl.held_out import HeldOut
from rl.metrics import SignalWatch, StepLog
from rl.placement.places import Placement
from rl.placement.transfer import choose_transfer, connect_engines
from rl.prompts.stream import PromptStream
from rl.rewards.registry import load_functions
from rl.rewards.scorer import Scorer
from rl.rollout.collect import Collector
from rl.rollout.manager import RolloutManager
from rl.rollout.solutions import collecting
from rl.timer import PhaseTimer
from rl.trainer_group import TrainerGroup, learn


def run_rl(config: RLConfig, *, nodes: int = 1) -> None:
    """Trains until `config.steps`. A run that was killed continues from its newest checkpoint.

    Args:
        nodes: machines that Ray has, or will have in a moment.

    Raises:
        SystemExit: with code RESUMABLE, after SIGUSR1: the run has ended its step and saved.
    """
    run = Path(config.run)
    load_functions(config.reward)  # a mistake in a user's own is found before anything starts
    claim_run(config, run)
    with hold_stop() as stop:  # before Ray starts: its processes inherit that the signal is blocked
        step = start_and_train(config, nodes, stop)
    if step < config.steps:
        exit_resumable(f"{run} is saved after {step} of {config.steps} steps")


def start_and_train(config: RLConfig, nodes: int, stop: StopRequest) -> int:
    """Starts Ray, trainers and engines, and trains; returns the steps done. All are ended, and the run is saved."""
    start_ray(nodes=nodes)
    try:
        placement = Placement(config)
        print(placement.plan.describe(), flush=True)
        config = choose_transfer(config, placement.plan)
        with (
            Scorer(config.reward, Path(config.run)) as scorer,
            # the trainers start while the engines do
            closing(TrainerGroup(config, placement)) as trainers,
            closing(HeldOut(config, scorer)) as held_out,
            closing(RolloutManager(connect_engines(config, placement, trainers), config.engine)) as engines,
        ):
            step = run_sync(config, trainers, engines, scorer, held_out=held_out, stop=stop)
            if step < config.steps:
                trainers.finish_checkpoint()
            else:
                trainers.save_hf()
            return step
    finally:
        stop_ray()


def run_sync(
    config: RLConfig,
    trainers: TrainerGroup,
    engines: RolloutManager,
    scorer: Scorer,
    *,
    held_out: HeldOut,
    stop: StopRequest,
) -> int:
    """Generates and trains in turn, so that rollouts are of the weights that learn from them; returns the steps done.

    Only those that algorithm.dynamic_sampling carries over are of older weights.
    """
    collect = collecting(config, scorer)
    collector = Collector(config, PromptStream(config), scorer.scoring(engines.generate), collect)
    first_step, state = trainers.resume()
    print(trainers.describe_backends(), flush=True)
    if state:
        collector.load(first_step, state)
    engines.update_weights(first_step)
    scale = TaskScale(config.algorithm.scale_decay, state.get("task_scale"))
    assign = partial(assign_advantages, algorithm=config.algorithm, scale=scale)
    bad_steps, signal = BadSteps(**state.get("bad_steps", {})), SignalWatch()
    with closing(StepLog(config, first_step)) as log:
        for step in range(first_step, config.steps):
            timer = PhaseTimer()
            collected = collector.collect(step, timer)
            held_out.start(step, engines)
            with timer.phase("train"):
                scale.update(collected.asked)
                rollouts, kept = [*map(assign, collected.asked)], [*map(assign, collected.chosen)]
                trained = learn(config, trainers, rollouts, kept, step)
                signal.add(collected.asked, kept)
                bad_steps = bad_steps.after(
                    trained["skipped_steps"] > 0,
                    limit=config.optim.max_bad_steps,
                    samples=lambda kept=kept: {group[0].ref.id for group in kept},
                )
            measured = held_out.finish()
            with timer.phase("sync"):
                engines.update_weights(step + 1)
            values = collected.metrics | trained | measured | engines.counts | {"bad_steps": bad_steps.total}
            log.write(step, collected.asked, timer.seconds(), values)
            stops = stop.is_made()
            if stops or (step + 1) % config.checkpoint.every == 0 or step + 1 == config.steps:
                signal.warn(step + 1)
                state = {"bad_steps": asdict(bad_steps), "task_scale": scale.state_dict()}
                trainers.save(step + 1, state | collector.save(step + 1))
            if stops:
                return step + 1
    return max(first_step, config.steps)
