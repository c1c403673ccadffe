"""Supervised fine-tuning: shards -> packed batches -> step -> checkpoint -> Hugging Face folder."""

from __future__ import annotations

import logging
import time
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

from data_pipeline.loader.loader import Loader
from data_pipeline.shards.survey import warn_of_small_images
from megatron_omr import parallel
from megatron_omr.checkpoint.load import load_newest
from megatron_omr.checkpoint.save import CheckpointWriter
from megatron_omr.config import SFTConfig
from megatron_omr.convert.export import save_hf
from megatron_omr.faults.bad_steps import BadSteps, EmptySteps
from megatron_omr.session import Session, join_run
from megatron_omr.train.losses import SFT_LOSSES
from megatron_omr.train.metrics import MetricsLog
from megatron_omr.train.peers import build_loader, exchange
from megatron_omr.train.run_folder import list_checkpoints
from megatron_omr.train.step import MicroBatch, summarize_step, train_step
from megatron_omr.train.stop import exit_resumable
from megatron_omr.train.trainer import Trainer, build_trainer, unwrap_chunks
from megatron_omr.validation.held_out import Validation

log = logging.getLogger(__name__)

SHOWN = ("loss", "validation_loss", "tokens_per_second", "mfu")


def run_sft(config: SFTConfig, *, rank: int, world_size: int, init_method: str) -> None:
    """Trains one rank's part of the run. A killed run continues from its newest checkpoint, bit for bit.

    Raises:
        SystemExit: with code RESUMABLE, after a rank got SIGUSR1: the run has ended its step and saved.
    """
    with join_run(config, rank=rank, world_size=world_size, init_method=init_method) as session:
        step = train_and_export(config, session)
    if step < config.steps:
        exit_resumable(f"{config.run} is saved after {step} of {config.steps} steps", says=rank == 0)


def train_and_export(config: SFTConfig, session: Session) -> int:
    """Trains, saves, and exports if no rank was asked to stop; returns the steps done."""
    run, ranks, heart = Path(config.run), session.ranks, session.heart
    folder = run / "checkpoints"
    trainer = build_trainer(
        config.model,
        config.parallel,
        ranks,
        config.optim,
        precision=config.precision,
        steps=config.steps,
        compute=config.compute,
        resumes=bool(list_checkpoints(folder)),
    )
    if ranks.rank == 0:
        print(trainer.backends.line(), flush=True)
    checkpoints = CheckpointWriter(trainer, folder, config.checkpoint, template=config.model)
    step = train(config, trainer, checkpoints, session)
    if step >= config.steps:
        heart.enter("export")
        save_hf(trainer.export_plan, unwrap_chunks(trainer), run / "hf", template=config.model)
    heart.enter("save")
    checkpoints.finish()
    return step


def train(config: SFTConfig, trainer: Trainer, checkpoints: CheckpointWriter, session: Session) -> int:
    """Runs and saves steps until `config.steps`, or until a rank is asked to stop; returns the steps done."""
    loader = build_loader(config, trainer)
    loss = SFT_LOSSES[config.loader.loss_mean]
    validation = Validation(config, trainer, session.heart)
    step, bad_steps, empty_steps = resume(trainer, loader, Path(config.run))
    too_many_empty = min(config.steps, 2 * loader.steps_per_epoch)  # these hold a whole epoch
    metrics = open_log(config, first_step=step) if trainer.ranks.is_logger else None
    with closing(metrics) if metrics is not None else nullcontext():
        for batches in islice(loader, max(0, config.steps - step)):
            measured = validation.measure(step)
            started = time.perf_counter()
            session.heart.enter(f"step {step}", is_limited=True)  # and reading the next batches
            checkpoints.check()
            result = train_step(trainer, [MicroBatch(packed=batch, loss=loss) for batch in batches])
            ids = partial(parallel.union_of_ranks, {i for b in batches for i in b.ids if i})
            bad_steps = bad_steps.after(result.skipped, limit=config.optim.max_bad_steps, samples=ids)
            empty_steps = empty_steps.after(
                result.work.num_learned, limit=too_many_empty, cases=lambda: loader.first_skipped
            )
            skipped, stops = exchange(loader, trainer.ranks, session.stop)
            seconds, step = time.perf_counter() - started, step + 1
            if step == config.steps:
                measured = validation.measure(step)
            if metrics is not None:
                values = summarize_step(result, seconds, trainer.ranks.world_size) | skipped | measured
                values |= {"bad_steps": bad_steps.total, "checkpoint_pause": checkpoints.take_pause()}
                metrics.write(step - 1, values, show=SHOWN, expert_load=result.expert_load)
            if stops or step % config.checkpoint.every == 0 or step == config.steps:
                session.heart.enter("save")
                counts = {"bad_steps": asdict(bad_steps), "empty_steps": asdict(empty_steps)}
                checkpoints.save(step, {"loader": loader.state_dict(), **counts})
            if stops:
                break
    return step


def resume(trainer: Trainer, loader: Loader, run: Path) -> tuple[int, BadSteps, EmptySteps]:
    """Loads the newest sound checkpoint of `run`, if any; returns the steps done, the bad and the empty ones so far."""
    step, state, damaged = load_newest(trainer, run)
    if damaged and trainer.ranks.is_logger:
        log.warning(damaged)
    if state:
        loader.load_state_dict(state["loader"])
    return step, BadSteps(**state.get("bad_steps", {})), EmptySteps(**state.get("empty_steps", {}))


def open_log(config: SFTConfig, *, first_step: int) -> MetricsLog:
    """Opens the metrics, and warns of small images; for the one rank that logs."""
    warn_of_small_images(config.loader.shards, config.image)
    return MetricsLog(Path(config.run), config.log, steps=config.steps, first_step=first_step, name="sft")
