"""The RL loop, as one page: ask -> answer -> reward -> advantage -> step -> weights to the engines, version + 1."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from data_pipeline.ray_session import start_ray, stop_ray
from data_pipeline.verify.pool import VerifyPool
from megatron_omr.train.bad_steps import BadSteps
from megatron_omr.train.metrics import JsonLines, MetricsLog
from megatron_omr.train.run_folder import checkpoints, save_config
from rl.config import RLConfig
from rl.groups import gallery_row, kept_groups, minibatches, rollout_metrics, score_groups, train_rollouts
from rl.placement import check_gpus, rollout_manager
from rl.prompts import PromptStream
from rl.rollout.manager import RolloutManager
from rl.timer import PhaseTimer
from rl.trainer_group import TrainerGroup
from rl.types import Group

PROBE_GROUPS, PROBE_ANSWERS = 8, 2
"""How many answers of how many groups of each step are compared between engine and trainer."""

GALLERY_GROUPS = 2
"""Groups of each step that are written out for people to read."""

SHOWN = ("reward", "reward_accuracy", "entropy", "mismatch_mean", "seconds_step")


def run_rl(config: RLConfig) -> None:
    """Train until `config.steps`. A run that was killed continues from its newest checkpoint."""
    run = Path(config.run)
    save_config(config, run, resumes=bool(checkpoints(run / "checkpoints")))
    start_ray()
    try:
        check_gpus(config)
        with (
            VerifyPool(config.reward.checker) as pool,
            closing(rollout_manager(config)) as engines,  # they start while the trainers do
            closing(TrainerGroup(config)) as trainers,
        ):
            run_sync(config, trainers, engines, pool)
            trainers.save_hf()
    finally:
        stop_ray()


def run_sync(config: RLConfig, trainers: TrainerGroup, engines: RolloutManager, pool: VerifyPool) -> None:
    """Generation and training take turns: every answer is of the weights that learn from it."""
    run, prompts = Path(config.run), PromptStream(config.shards, seed=config.seed, image=config.image)
    first_step, state = trainers.resume()
    if state:
        prompts.load_state_dict(state["prompts"])
    engines.update_weights(trainers.send_weights(version=first_step))
    bad_steps = BadSteps(**state.get("bad_steps", {}))
    log = MetricsLog(run, config.log, steps=config.steps, first_step=first_step, name="rl")
    gallery = JsonLines(run / "rollouts.jsonl", first_step=first_step)
    with closing(log), closing(gallery):
        for step in range(first_step, config.steps):
            timer = PhaseTimer()
            asked = prompts.take(config.prompts_per_step)
            with timer.phase("generate"):
                answers = engines.generate(asked, config.sampling, step)
            with timer.phase("reward"):
                groups = score_groups(pool, config.reward, asked, answers)
            with timer.phase("train"):
                kept = kept_groups(config.algorithm, groups)
                trained = learn(config, trainers, groups, kept)
                bad_steps = bad_steps.after(
                    trained["skipped_steps"] > 0,
                    limit=config.optim.max_bad_steps,
                    samples=lambda kept=kept: {group.prompt.ref.id for group in kept},
                )
            with timer.phase("sync"):
                engines.update_weights(trainers.send_weights(version=step + 1))
            values = rollout_metrics(groups, kept) | trained | timer.seconds()
            values["tokens_per_second"] = values["response_tokens"] / values["seconds_generate"]
            values["skipped_prompts"] = float(prompts.num_skipped)
            values["engine_restarts"] = float(engines.restarts)
            values["bad_steps"] = float(bad_steps.total)
            log.write(step, values, show=SHOWN)
            for group in groups[:GALLERY_GROUPS]:
                gallery.write(step, gallery_row(config.shards, group))
            if (step + 1) % config.checkpoint.every == 0 or step + 1 == config.steps:
                trainers.save(step + 1, {"prompts": prompts.state_dict(), "bad_steps": asdict(bad_steps)})


def learn(
    config: RLConfig, trainers: TrainerGroup, groups: Sequence[Group], kept: Sequence[Group]
) -> dict[str, float]:
    """Check that engines and trainer run the same weights, then train; a step without any signal changes nothing."""
    probes = [r for group in groups[:PROBE_GROUPS] for r in train_rollouts(group)[:PROBE_ANSWERS]]
    mismatch = trainers.check_engines(probes)
    if not kept:
        return mismatch | {"skipped_steps": 0.0}
    return mismatch | trainers.train(minibatches(kept, config.algorithm.num_minibatches))
