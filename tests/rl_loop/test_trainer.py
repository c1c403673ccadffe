"""A trainer worker alone and as one of two ranks: scores, steps, weights and checkpoints."""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from launch.ranks.launcher import rank_environment
from megatron_omr.config import ParallelConfig
from rl.algorithms.config import AlgorithmConfig, KLConfig
from rl.algorithms.policy_loss import build_policy_loss
from rl.config import RLConfig
from rl.pack import split_by_rank
from rl.types import TrainRollout
from rl.weight_sync.shared_memory import read_place
from tests.helpers.ranks import run_ranks
from tests.helpers.rl_training import oracle_rollouts, rl_config
from tests.helpers.weights import received
from tests.model.test_peers import digest

if TYPE_CHECKING:
    from rl.trainer import TrainerWorker

pytestmark = [pytest.mark.heavy, pytest.mark.slow]


def trainer_rank(config: RLConfig, rollouts: list[TrainRollout]) -> dict[str, Any]:
    """Runs everything a worker does, once, and returns the results; then again what follows the checkpoint."""
    from megatron_omr import parallel
    from megatron_omr.swap.offload import EVERYTHING
    from rl.trainer import TrainerWorker

    rank, world_size, init_method = rank_environment()
    config = replace(config, algorithm=AlgorithmConfig(kl=KLConfig(coefficient=0.1)))
    worker = TrainerWorker(config, rank=rank, world_size=world_size, init_method=init_method)
    dp_rank, is_logger = worker.place()
    share, halves = (
        [split_by_rank(part, world_size, whole_groups=False)[dp_rank] for part in parts]
        for parts in ([rollouts], [rollouts[:2], rollouts[2:]])
    )
    seen: dict[str, Any] = {"place": (dp_rank, is_logger), "resumed at first": worker.resume()}
    seen["score"] = score(worker, share[0])
    place = worker.open_sender("127.0.0.1") if rank == 0 else None

    def checksums(version: int) -> dict[str, int]:
        assert worker.send_weights(version) == ""
        weights = received(read_place(place), version) if place else {}
        return {name: zlib.crc32(tensor.contiguous().view(-1).numpy()) for name, tensor in weights.items()}

    seen["weights at first"] = checksums(0)
    seen["step"] = worker.train(share, 0)
    worker.keep(["weights"])  # as while engines get them, which may then generate
    seen["weights of step 1"] = checksums(1)
    with pytest.raises(RuntimeError, match="a checkpoint needs the trainer's optimizer and gradients"):
        worker.save(1, {})
    worker.keep([])
    with pytest.raises(RuntimeError, match="sending weights needs the trainer's weights"):
        worker.send_weights(1)
    worker.keep(EVERYTHING)
    worker.save(1, {"cursor": 5})
    worker.save_hf()
    seen["two steps"] = worker.train(halves, 0)
    seen["weights of step 3"] = checksums(3)
    seen["reference"] = reference_gaps(worker, share[0])
    seen["weights after"] = checksums(3)
    seen["resumed"] = worker.resume()
    seen["weights resumed"] = checksums(1)
    seen["stale"] = train_on_stale(worker, share[0])
    seen["corrected"] = train_corrected(worker, halves)
    with pytest.raises(ValueError, match="ban them while sampling"):
        worker.score([replace(rollouts[0], token_ids=np.array([worker._encoder.image_token_id, 1, 2]))])
    parallel.shutdown()
    again = TrainerWorker(config, rank=rank, world_size=world_size, init_method=f"{init_method}-again")
    again.resume()
    seen["two steps again"] = again.train(halves, 0)
    return seen


def score(worker: TrainerWorker, rollouts: list[TrainRollout]) -> tuple[float, int, float]:
    """Returns the differences of the current logprobs from the rollouts' own: sum, count, largest."""
    gaps = [np.abs(own - r.logprobs) for own, r in zip(worker.score(rollouts) or [], rollouts, strict=True)]
    together = np.concatenate([*gaps, np.zeros(0)])
    return float(together.sum()), together.size, float(together.max(initial=0.0))


def reference_gaps(worker: TrainerWorker, rollouts: list[TrainRollout]) -> list[float]:
    """Returns the largest differences of the reference's logprobs, and of the current ones, from the rollouts'."""
    (batches,) = worker._with_reference_logprobs([worker._pack(rollouts, 0)])
    parts = [
        (batch.reference_logprobs_T - batch.rollout_logprobs_T)[batch.packed.loss_mask.bool()]
        for batch in batches
    ]
    return [float(torch.cat(parts).abs().max()), score(worker, rollouts)[2]]


def train_on_stale(worker: TrainerWorker, rollouts: list[TrainRollout]) -> tuple[dict[str, float], float]:
    """Trains on rollouts of the first weights after a step; returns the metrics, and the ratio to expect.

    The last rollout is taken for one of the current weights.
    """
    batches = worker._pack(rollouts, 0)
    ratios = []  # of each token
    for batch, logprobs_T in zip(batches, worker._logprobs([b.packed for b in batches]), strict=True):
        packed = batch.packed
        for name, (start, end) in zip(packed.ids, pairwise(packed.cu_seqlens.tolist()), strict=True):
            gap_T = (logprobs_T - batch.rollout_logprobs_T)[start:end][packed.loss_mask[start:end].bool()]
            ratio = 1.0 if name.endswith(f"({len(rollouts) - 1})") else float(gap_T.mean().exp())
            ratios += [ratio] * len(gap_T)
    *stale, last = rollouts
    return worker.train([[*stale, replace(last, versions=((1, len(last.token_ids)),))]], 1), sum(
        ratios
    ) / len(ratios)


def train_corrected(worker: TrainerWorker, halves: list[list[TrainRollout]]) -> dict[str, float]:
    """Trains on rollouts of the first weights, corrected by the trainer's logprobs at the beginning of the step."""
    algorithm = AlgorithmConfig(name="grpo", correction="token", correction_high=1.001)
    worker._config = replace(worker._config, algorithm=algorithm)
    worker._loss = build_policy_loss(algorithm, 10)
    return worker.train([halves[0]], 9)


def pack_rank(config: RLConfig, rollouts: list[TrainRollout]) -> tuple[int, str]:
    """Packs once, and returns how many prompts this rank decoded, and a digest of its batches."""
    from rl.trainer import TrainerWorker

    rank, world_size, init_method = rank_environment()
    worker = TrainerWorker(config, rank=rank, world_size=world_size, init_method=init_method)
    encode, decoded = worker._encoder.encode_prompt, []
    worker._encoder.encode_prompt = lambda sample: decoded.append(1) or encode(sample)
    batches = worker._pack(rollouts, 0)
    return len(decoded), digest([batch.packed for batch in batches])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def rollouts(tiny_hf: Path, root: Path) -> list[TrainRollout]:
    return oracle_rollouts(rl_config(tiny_hf, root, trainers=1))


@pytest.fixture(scope="module")
def alone(tiny_hf: Path, root: Path, rollouts: list[TrainRollout]) -> dict[str, Any]:
    return run_ranks(trainer_rank, 1, rl_config(tiny_hf, root, trainers=1), rollouts)[0]


def test_score_is_the_difference_to_the_logprobs_of_the_rollouts(
    alone: dict[str, Any], rollouts: list[TrainRollout]
) -> None:
    total, count, largest = alone["score"]
    assert count == sum(len(rollout.token_ids) for rollout in rollouts)
    assert total / count <= largest < 1e-4  # float32 gives 1e-6, another tensor or prompt 0.1 and more


def test_step_moves_every_weight_and_reports_it(alone: dict[str, Any]) -> None:
    step, before, after = alone["step"], alone["weights at first"], alone["weights of step 1"]
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)
    assert (step["ratio"], step["clip_fraction"], step["skipped_steps"]) == (1, 0, 0)  # on-policy
    assert step["lr"] == 1e-3 and step["grad_norm"] > 0 and step["entropy"] > 0
    assert step["mismatch"] < 1e-4  # as above


def test_later_minibatches_are_compared_with_the_policy_that_sampled(alone: dict[str, Any]) -> None:
    assert alone["two steps"]["ratio"] != 1  # the mean of 1 and of the second step's


def test_stale_rollouts_are_compared_with_the_engine_that_sampled_them(
    alone: dict[str, Any], rollouts: list[TrainRollout]
) -> None:
    """Of four rollouts one is taken for a fresh one: it has the ratio 1 and is all that the mismatch counts."""
    metrics, ratio = alone["stale"]
    assert abs(ratio - 1) > 1e-3
    assert metrics["ratio"] == pytest.approx(ratio, rel=1e-5)
    assert metrics["mismatch"] > 1e-3  # its logprobs are of the first weights


def test_corrected_stale_rollouts_have_the_ratio_1_and_a_weight(alone: dict[str, Any]) -> None:
    metrics = alone["corrected"]
    assert metrics["ratio"] == 1 and metrics["policy_kl"] == 0
    assert metrics["correction_ratio_min"] < 0.999 < 1.001 < metrics["correction_ratio_max"]
    assert 0 < metrics["correction_truncated"] < 1
    assert metrics["correction_weight"] < 1.001 and 0 < metrics["correction_ess"] < 1
    assert "mismatch" not in metrics  # nothing was fresh
    assert "correction_weight_squared" not in metrics


def test_checkpoint_restores_weights_and_state(alone: dict[str, Any]) -> None:
    assert alone["resumed at first"] == (0, {}, "")
    assert alone["resumed"] == (1, {"cursor": 5}, "")
    assert alone["weights of step 3"] != alone["weights of step 1"] == alone["weights resumed"]


def test_reference_stays_the_first_model_also_in_a_resumed_run(
    alone: dict[str, Any], rollouts: list[TrainRollout]
) -> None:
    """transformers computed the logprobs of the rollouts on the model folder."""
    reference, current = alone["reference"]
    assert reference < 1e-4 < 1e-2 < current  # as in the score at first; after three steps of lr 1e-3
    assert alone["weights after"] == alone["weights of step 3"]
    again, uninterrupted = (
        {name: value for name, value in alone[run].items() if name != "checkpoint_pause"}
        for run in ("two steps again", "two steps")
    )
    assert again == uninterrupted and again["reference_kl"] > 1e-4


def test_hf_folder_holds_the_weights_of_the_step(alone: dict[str, Any], tiny_hf: Path, root: Path) -> None:
    saved, base = (load_file(f / "model.safetensors") for f in (root / "run-1/hf", tiny_hf))
    assert saved.keys() == base.keys()
    assert not any(torch.equal(saved[name], base[name]) for name in base)


def test_two_ranks_train_like_one(
    alone: dict[str, Any], tiny_hf: Path, root: Path, rollouts: list[TrainRollout]
) -> None:
    ranks = run_ranks(trainer_rank, 2, rl_config(tiny_hf, root, trainers=2), rollouts)
    assert sorted(rank["place"][0] for rank in ranks) == [0, 1]
    logger = next(rank for rank in ranks if rank["place"][1])
    for name in ("loss", "grad_norm", "entropy"):
        # float32 sums in another order: 1e-6 and less; the mean of two means would be off by 1e-2
        assert logger["step"][name] == pytest.approx(alone["step"][name], rel=1e-4, abs=1e-6), name
    assert sum(rank["score"][1] for rank in ranks) == alone["score"][1]


def test_ranks_of_a_replica_decode_its_images_once(
    tiny_hf: Path, root: Path, rollouts: list[TrainRollout]
) -> None:
    config = replace(rl_config(tiny_hf, root, trainers=2), parallel=ParallelConfig(tp=2))
    (read, own), (others, shared) = run_ranks(pack_rank, 2, config, rollouts)
    assert (read, others) == (2, 0) and own == shared
