"""Computes the trainer's logprobs of what an engine sampled, and reports the differences: `omr parity --engine`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.files import to_json, without_nan
from data_pipeline.loader.packing import balance
from data_pipeline.tables import text_table
from megatron_omr import parallel
from rl.config import RLConfig
from rl.mismatch.measure import Compared, measure_mismatch
from rl.parity.ask import Asked
from rl.parity.config import EngineParityConfig
from rl.types import TrainRollout

if TYPE_CHECKING:
    from rl.trainer import TrainerWorker


@dataclass(frozen=True, kw_only=True)
class EngineParityReport:
    """Differences between trainer and engine, and the token where they are largest."""

    prompts: int
    responses: int
    mismatch: dict[str, float]  # by measure_mismatch
    worst_sample: str  # id of the prompt
    worst_position: int  # in the response
    worst_token: str
    worst_engine: float  # its logprobs
    worst_trainer: float
    passed: bool


def compare(
    asked: Asked, settings: EngineParityConfig, *, json: bool, rank: int, world_size: int, init_method: str
) -> bool:
    """Computes the trainer's logprobs and prints the differences on rank 0; returns on every rank whether they pass."""
    from rl.trainer import TrainerWorker

    config, rollouts = asked.config, asked.rollouts
    with TemporaryDirectory() as run:
        worker = TrainerWorker(
            replace(config, run=run), rank=rank, world_size=world_size, init_method=init_method
        )
        own = _score(worker, rollouts, config.parallel.dp(world_size))
    report = build_report(config, settings, own)
    if rank == 0:
        values = to_json(without_nan(asdict(report)))
        print(values if json else format_report(report, config, settings), flush=True)
    dist.barrier()
    parallel.shutdown()
    return report.passed


def _score(worker: TrainerWorker, rollouts: tuple[TrainRollout, ...], dp_size: int) -> list[Compared]:
    """Returns the responses with the trainer's logprobs, on every rank. Collective."""
    dp_rank, _ = worker.place()
    shares = balance([len(rollout.token_ids) + rollout.prompt_tokens for rollout in rollouts], dp_size)
    found = worker.score([rollouts[i] for i in shares[dp_rank]])
    everywhere: list[dict[int, NDArray[np.float32]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everywhere, dict(zip(shares[dp_rank], found, strict=True)) if found else {})
    own = {number: values for part in everywhere for number, values in part.items()}
    return [
        Compared(rollout=rollout, trainer_logprobs=own[number], is_fresh=np.ones(len(own[number]), bool))
        for number, rollout in enumerate(rollouts)
    ]


def build_report(
    config: RLConfig, settings: EngineParityConfig, compared: Sequence[Compared]
) -> EngineParityReport:
    """Returns the differences, and whether their mean is within the limit."""
    worst = max(compared, key=lambda each: each.largest)
    position = int(np.nan_to_num(np.abs(worst.differences), nan=np.inf).argmax())
    rollout, mismatch = worst.rollout, measure_mismatch(compared)
    assert rollout.logprobs is not None, "an engine sampled it"
    tokens = ChatEncoder.from_hf(config.model, config.image)
    return EngineParityReport(
        prompts=len({each.rollout.ref for each in compared}),
        responses=len(compared),
        mismatch=mismatch,
        worst_sample=rollout.ref.id,
        worst_position=position,
        worst_token=tokens.decode(rollout.token_ids[position : position + 1].tolist()),
        worst_engine=float(rollout.logprobs[position]),
        worst_trainer=float(worst.trainer_logprobs[position]),
        passed=mismatch["mismatch_mean"] <= settings.max_mismatch,
    )


def format_report(report: EngineParityReport, config: RLConfig, settings: EngineParityConfig) -> str:
    """Returns the table that the command prints."""
    names = {
        "mean": "|difference|, mean",
        "p50": "median",
        "p99": "99 %",
        "max": "largest",
        "k1": "KL(engine || trainer), k1",
        "k3": "KL(engine || trainer), k3",
    }
    rows = [
        (text, f"{report.mismatch[f'mismatch_{name}']:.2e}", f"{settings.max_mismatch:g}" * (name == "mean"))
        for name, text in names.items()
    ]
    head = ", output head in fp32" if config.engine.fp32_head else ""
    return (
        f"{config.model}: trainer in {config.precision} against vLLM in {config.engine.precision}{head}\n"
        f"{report.responses} responses to {report.prompts} prompts, {report.mismatch['mismatch_tokens']:.0f} tokens\n"
        f"{text_table(('logprobs', 'found', 'limit'), rows)}\n"
        f"worst: token {report.worst_position} of a response to {report.worst_sample}, {report.worst_token!r}: "
        f"engine {report.worst_engine:.4f}, trainer {report.worst_trainer:.4f}\n"
        + ("within the limit" if report.passed else "ABOVE the limit")
    )
