"""The RL loop, as one page: ask -> answer -> reward -> advantage -> step -> weights to the engines, version + 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data_pipeline.verify_pool import VerifyPool
from megatron_omr.metrics import JsonLines, MetricsLog
from rl.config import RLConfig
from rl.groups import gallery_row, kept_groups, minibatches, rollout_metrics, score_groups, train_rollouts
from rl.placement import rollout_manager, start_ray, stop_ray
from rl.prompts import PromptStream
from rl.rollout.manager import RolloutManager
from rl.timer import PhaseTimer
from rl.trainer_group import TrainerGroup
from rl.types import Group

GALLERY_GROUPS = 2
"""Groups of each step that are written out for people to read."""

SHOWN = ("reward", "reward_accuracy", "entropy", "mismatch_mean", "seconds_step")


def run_rl(config: RLConfig) -> None:
    """Train until `config.steps`. A run that was killed continues from its newest checkpoint."""
    run = Path(config.run)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    start_ray()
    try:
        with VerifyPool(config.reward.workers, config.reward.deadline) as pool:
            engines = rollout_manager(config)  # start while the trainers do
            trainers = TrainerGroup(config)
            run_sync(config, trainers, engines, pool)
            trainers.save_hf()
            trainers.close()
    finally:
        stop_ray()


def run_sync(config: RLConfig, trainers: TrainerGroup, engines: RolloutManager, pool: VerifyPool) -> None:
    """Generation and training take turns: every answer is of the weights that learn from it."""
    run, prompts = Path(config.run), PromptStream(config.prompts, seed=config.seed)
    first_step, state = trainers.resume()
    if state:
        prompts.load_state_dict(state["prompts"])
    engines.update_weights(trainers.send_weights(version=first_step))
    log = MetricsLog(run, config.log, steps=config.steps, first_step=first_step, name="rl")
    gallery = JsonLines(run / "rollouts.jsonl", first_step=first_step)
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
        with timer.phase("sync"):
            engines.update_weights(trainers.send_weights(version=step + 1))
        values = rollout_metrics(groups, kept) | trained | timer.seconds()
        values["tokens_per_second"] = values["response_tokens"] / values["seconds_generate"]
        values["engine_restarts"] = float(engines.restarts)
        log.write(step, values, show=SHOWN)
        for group in groups[:GALLERY_GROUPS]:
            gallery.write(step, gallery_row(config.prompts, group))
        if (step + 1) % config.checkpoint.every == 0 or step + 1 == config.steps:
            trainers.save(step + 1, {"prompts": prompts.state_dict()})
    gallery.close()
    log.close()


def learn(
    config: RLConfig, trainers: TrainerGroup, groups: Sequence[Group], kept: Sequence[Group]
) -> dict[str, float]:
    """Check that engines and trainer run the same weights, then train; a step without any signal changes nothing."""
    probe = [rollout for group in groups for rollout in train_rollouts(group)]
    mismatch = trainers.check_engines(probe)
    if not kept:
        return mismatch
    return mismatch | trainers.train(minibatches(kept, config.algorithm.num_minibatches))
