"""The RL loop: ask -> reward -> advantage -> step -> weights to the engines, version + 1. `omr rl NAME` runs it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from data_pipeline.ray_session import start_ray, stop_ray
from megatron_omr.faults.run_lock import hold_run
from megatron_omr.model_config import ModelConfig
from megatron_omr.train.run_folder import claim_run
from megatron_omr.train.stop import StopRequest, exit_resumable, hold_stop
from rl.config import RLConfig
from rl.held_out import HeldOut
from rl.learning import Learner
from rl.mismatch.evidence import naming_tensors
from rl.modes.asynchronous import run_async
from rl.modes.one_step_off import run_one_step_off
from rl.modes.parts import RunParts
from rl.modes.status import StatusWriter
from rl.modes.sync import run_sync
from rl.placement.places import Placement
from rl.placement.transfer import choose_transfer
from rl.placement.turns import connect_engines
from rl.rewards.registry import load_functions
from rl.rewards.scorer import Scorer
from rl.rollout.manager import RolloutManager
from rl.trainer_group import TrainerGroup

MODES = {"sync": run_sync, "one_step_off": run_one_step_off, "async": run_async}


def run_rl(config: RLConfig, *, nodes: int = 1) -> None:
    """Trains until `config.steps`. A run that was killed continues from its newest checkpoint.

    Args:
        nodes: machines that Ray has, or will have in a moment.

    Raises:
        SystemExit: with code RESUMABLE, after SIGUSR1: the run has ended its step and saved.
        ValueError: another process trains this run.
    """
    run = Path(config.run)
    load_functions(config.reward)  # a mistake in a user's own is found before anything starts
    check_replay(config)
    # before Ray starts: its processes inherit that the signal is blocked
    with hold_run(run), hold_stop() as stop:
        claim_run(config, run)
        step = start_and_train(config, nodes, stop)
    if step < config.steps:
        exit_resumable(f"{run} is saved after {step} of {config.steps} steps")


def check_replay(config: RLConfig) -> None:
    """Raises ValueError where experts are to be replayed in a model that has none."""
    if config.algorithm.records_routing and ModelConfig.from_hf(config.model).moe is None:
        raise ValueError(
            f"algorithm.router_replay={config.algorithm.router_replay} is for models with experts, and {config.model} "
            "has none; leave it off"
        )


def start_and_train(config: RLConfig, nodes: int, stop: StopRequest) -> int:
    """Starts Ray, trainers and engines, and trains; returns the steps done. All are ended, and the run is saved."""
    start_ray(nodes=nodes)
    try:
        placement = Placement(config)
        print(placement.plan.describe(), flush=True)
        config = choose_transfer(config, placement.plan)
        with (
            StatusWriter(Path(config.run), config.steps) as status,
            Scorer(config.reward, Path(config.run)) as scorer,
            # the trainers start while the engines do
            closing(TrainerGroup(config, placement)) as trainers,
            closing(HeldOut(config, scorer)) as held_out,
            closing(RolloutManager(connect_engines(config, placement, trainers), config.engine)) as engines,
        ):
            status.states = engines.states
            with naming_tensors(engines), Learner(config, trainers, stop) as learner:
                status.resume(learner.first_step)
                parts = RunParts(
                    config=config,
                    learner=learner,
                    engines=engines,
                    scorer=scorer,
                    held_out=held_out,
                    status=status,
                )
                MODES[config.rollout.mode](parts)
            if learner.steps_done < config.steps:
                trainers.finish_checkpoint()
            else:
                trainers.save_hf()
            return learner.steps_done
    finally:
        stop_ray()
