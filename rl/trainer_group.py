"""All Megatron workers as one object: hands each its share, joins their answers. Knows Ray, not Megatron."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from rl.config import RLConfig
from rl.pack import split_by_rank
from rl.placement import trainer_actors
from rl.types import TrainRollout
from rl.weight_sync.manifest import WeightManifest


class TrainerGroup:
    """The trainer of the RL loop. Workers of one data-parallel rank get the same rollouts."""

    def __init__(self, config: RLConfig) -> None:
        run = Path(config.run).absolute()
        run.mkdir(parents=True, exist_ok=True)
        self._rendezvous = run / f".rendezvous-{uuid.uuid4().hex}"
        self._workers = trainer_actors(config, init_method=f"file://{self._rendezvous}")
        places = self._call("place")
        self._dp_ranks = [dp_rank for dp_rank, _ in places]
        self._logger = next(i for i, (_, is_logger) in enumerate(places) if is_logger)
        self._max_mismatch = config.max_mismatch
        self._share_prompts = config.share_prompts

    def resume(self) -> tuple[int, dict[str, Any]]:
        """(steps done, saved state) of the newest checkpoint; (0, {}) when there is none."""
        return self._call("resume")[0]

    def check_engines(self, rollouts: Sequence[TrainRollout]) -> dict[str, float]:
        """Compare the engines' logprobs with the trainer's on these rollouts of the current weights.

        Raises:
            RuntimeError: they differ by more than `max_mismatch` on average: the engines run other weights or
                read the prompts differently, and nothing they say may be learned from.
        """
        answers = self._call_by_rank("score", self._split(rollouts))
        gaps = [answer for answer in answers if answer is not None]
        mean = sum(total for total, _, _ in gaps) / sum(count for _, count, _ in gaps)
        largest = max(high for _, _, high in gaps)
        if not mean <= self._max_mismatch:
            raise RuntimeError(
                f"engine and trainer disagree: mean |logprob difference| {mean:.3g} (largest {largest:.3g}) on "
                f"{len(rollouts)} rollouts, allowed max_mismatch={self._max_mismatch:g}. Nothing was "
                "trained on them; check that both read the same model folder and image limits"
            )
        return {"mismatch_mean": mean, "mismatch_max": largest}

    def train(self, minibatches: Sequence[Sequence[TrainRollout]]) -> dict[str, float]:
        """One optimizer step a mini-batch; returns the metrics of the logging rank."""
        shares = [self._split(rollouts) for rollouts in minibatches]
        by_rank = [[share[dp_rank] for share in shares] for dp_rank in range(self._dp_size)]
        return self._call_by_rank("train", by_rank)[self._logger]

    def send_weights(self, version: int) -> WeightManifest:
        """Put the current weights where engines can read them."""
        return next(manifest for manifest in self._call("send_weights", version) if manifest is not None)

    def save(self, step: int, state: dict[str, Any]) -> None:
        self._call("save", step, state)

    def save_hf(self) -> None:
        """Write RUN/hf."""
        self._call("save_hf")

    def close(self) -> None:
        """End the workers."""
        self._rendezvous.unlink(missing_ok=True)
        for worker in self._workers:
            ray.kill(worker)

    @property
    def _dp_size(self) -> int:
        return max(self._dp_ranks) + 1

    def _split(self, rollouts: Sequence[TrainRollout]) -> list[list[TrainRollout]]:
        return split_by_rank(rollouts, self._dp_size, whole_groups=self._share_prompts)

    def _call(self, method: str, *args: Any) -> list[Any]:
        return ray.get([worker.call.remote(method, *args) for worker in self._workers])

    def _call_by_rank(self, method: str, shares: Sequence[Any]) -> list[Any]:
        """Call with the share of each worker's data-parallel rank."""
        calls = zip(self._workers, self._dp_ranks, strict=True)
        return ray.get([worker.call.remote(method, shares[dp_rank]) for worker, dp_rank in calls])
