"""All Megatron workers as one object: sends each its share and combines the results. Uses Ray, not Megatron."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from data_pipeline.encode.chat_format import ChatFormat
from data_pipeline.failures import RankError
from data_pipeline.loader.cost import CostModel
from megatron_omr.faults.heartbeat import Watch, clear_beats
from megatron_omr.flops import build_cost_model
from megatron_omr.model_config import ModelConfig
from rl.algorithms.solution import measure_advantage
from rl.config import RLConfig
from rl.groups import split_groups
from rl.mismatch.evidence import evidence_folder, write_samples
from rl.mismatch.measure import Compared, measure_mismatch
from rl.mismatch.watch import EnginesDisagree, MismatchWatch
from rl.pack import split_by_rank
from rl.placement.actors import collect, start_trainers
from rl.placement.places import Placement
from rl.types import TrainRollout

if TYPE_CHECKING:
    from megatron_omr.swap.offload import Kind
    from rl.trainer import TrainerWorker

log = logging.getLogger(__name__)

PROBE_GROUPS, PROBE_ROLLOUTS = 8, 2
"""Groups of each step, and rollouts of each, on which engine and trainer are compared."""
R = TypeVar("R")
S = TypeVar("S")


class TrainerGroup:
    """The trainer of the RL loop. Workers of one data-parallel rank get the same rollouts."""

    def __init__(self, config: RLConfig, placement: Placement) -> None:
        self._run = Path(config.run)
        clear_beats(self._run)
        self._processes, self._started = start_trainers(config, placement)
        self._looks = self._started
        self._looking = Lock()
        self._watch = Watch(self._run, config.fault, rank=0, world_size=config.trainers, begins=True)
        self._config = config
        self._mismatch = MismatchWatch(config.warn_at, config.max_mismatch)
        self.turn: Callable[[], AbstractContextManager[None]] = nullcontext
        """Is entered for what needs the whole trainer on its devices, where engines share them."""

    def keep(self, kinds: Sequence[Kind]) -> None:
        """Has the workers keep these on their devices, and the rest in host memory."""
        self._collect(self._started)
        self._on_all(lambda worker: worker.keep(kinds))

    def check_alive(self) -> None:
        """Raises RankError if a worker has died, has stopped or hangs; does not wait for those that are busy."""
        self._look()
        if len(collect(self._looks, wait=False)) == len(self._looks):
            self._looks = [process.run.remote(lambda worker: None) for process in self._processes]

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Loads the newest sound checkpoint; returns (steps done, saved state), or (0, {}) when there is none."""
        self._collect(self._started)  # the first to fail said why
        with self.turn():
            step, state, damaged = self._on_all(lambda worker: worker.resume())[0]
        if damaged:  # the workers' own output does not reach the console
            log.warning(damaged)
        own = state.pop("mismatch", None)
        self._mismatch = MismatchWatch(self._config.warn_at, self._config.max_mismatch, own)
        return step, state

    def describe_backends(self) -> str:
        """Returns the line of the first worker, which has the vision tower."""
        return self._on_all(lambda worker: worker.describe_backends())[0]

    def check_engines(self, rollouts: Sequence[TrainRollout], version: int) -> dict[str, float]:
        """Compares the engines' logprobs with the trainer's on these rollouts; see measure_mismatch.

        `version` is that of the current weights. Only what they sampled can stop the run, as of other tokens the
        difference is also what the policy has moved; with few of these, `mismatch_tokens` says so.

        Raises:
            EnginesDisagree: they differ by more than `max_mismatch` on average: the engines run other weights or read
                the prompts differently, and training on their rollouts would be wrong. The samples are written.
        """
        compared = self._compare(rollouts, version)
        metrics = measure_mismatch(compared)
        if self._mismatch.is_too_far(metrics):
            folder = evidence_folder(self._run, version)
            write_samples(folder, compared, ChatFormat.from_hf(self._config.model).name_tokens)
            raise EnginesDisagree(
                f"engine and trainer disagree: mean |logprob difference| {metrics['mismatch_mean']:.3g} (largest "
                f"{metrics['mismatch_max']:.3g}) on {len(rollouts)} rollouts, allowed "
                f"max_mismatch={self._config.max_mismatch:g}. Nothing was trained on them; {folder} has their tokens",
                folder,
            )
        return metrics | self._mismatch.add(version, metrics)

    def train(self, minibatches: Sequence[Sequence[TrainRollout]], version: int) -> dict[str, float]:
        """Runs one optimizer step per mini-batch; returns the metrics of the logging rank.

        `version` is that of the weights before.
        """
        shares = [self._split(rollouts) for rollouts in minibatches]
        by_rank = [[share[dp_rank] for share in shares] for dp_rank in range(self._dp_size)]
        logger = next(i for i, (_, is_logger) in enumerate(self._places) if is_logger)
        with self.turn():
            return self._by_rank(lambda worker, share: worker.train(share, version), by_rank)[logger]

    def open_sender(self) -> dict[str, Any]:
        """Makes the first worker ready to send weights; returns the place from which engines get them.

        With it go its `inputs`, which an engine that joins compares with its own.
        """
        place = self._on_first(lambda worker: worker.open_sender(ray.util.get_node_ip_address()))
        return place | {"inputs": self._on_first(lambda worker: worker.describe_inputs())}

    def join_engines(self, generation: int, num_ranks: int) -> str:
        """Opens the first worker's end of a group with engines; returns why not all came, or ""."""
        return self._on_first(lambda worker: worker.join_engines(generation, num_ranks))

    def send_weights(self, version: int) -> str:
        """Sends the current weights; returns why an engine did not get them, or ""."""
        return self._on_all(lambda worker: worker.send_weights(version))[0]

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the checkpoint of `step` steps, with `state`."""
        state = state | {"mismatch": self._mismatch.state_dict()}
        with self.turn():
            self._on_all(lambda worker: worker.save(step, state))

    def finish_checkpoint(self) -> None:
        """Waits until the last checkpoint is complete."""
        self._on_all(lambda worker: worker.finish_checkpoint())

    def save_hf(self) -> None:
        """Writes RUN/hf."""
        with self.turn():
            self._on_all(lambda worker: worker.save_hf())

    def close(self) -> None:
        """Ends the workers."""
        for process in self._processes:
            ray.kill(process)
        clear_beats(self._run)

    @cached_property
    def _places(self) -> list[tuple[int, bool]]:
        """The data-parallel rank of each worker, and whether its results are logged; waits until all have started."""
        self._collect(self._started)
        return self._on_all(lambda worker: worker.place())

    @property
    def _dp_size(self) -> int:
        return 1 + max(dp_rank for dp_rank, _ in self._places)

    @cached_property
    def _cost(self) -> CostModel:
        return build_cost_model(ModelConfig.from_hf(self._config.model), self._config.optim.freeze)

    def _split(self, rollouts: Sequence[TrainRollout]) -> list[list[TrainRollout]]:
        return split_by_rank(
            rollouts, self._dp_size, whole_groups=self._config.share_prompts, cost=self._cost
        )

    def _compare(self, rollouts: Sequence[TrainRollout], version: int) -> list[Compared]:
        """Returns the rollouts with the trainer's logprobs."""
        if not rollouts:
            return []
        shares = self._split(rollouts)
        with self.turn():
            replies = self._by_rank(lambda worker, share: worker.score(share), shares)
        scores = {dp_rank: found for (dp_rank, _), found in zip(self._places, replies, strict=True) if found}
        return [
            Compared(rollout=rollout, trainer_logprobs=logprobs, is_fresh=rollout.find_fresh(version))
            for dp_rank, share in enumerate(shares)
            for rollout, logprobs in zip(share, scores.get(dp_rank, []), strict=True)
        ]

    def _look(self) -> None:
        with self._looking:  # a thread that asks engines looks, too
            report = self._watch.look()
        if report:
            raise RankError(report)

    def _collect(self, replies: Sequence[ray.ObjectRef]) -> list[Any]:
        return collect(replies, watch=self._look)

    def _on_first(self, call: Callable[[TrainerWorker], R]) -> R:
        return self._collect([self._processes[0].run.remote(call)])[0]

    def _on_all(self, call: Callable[[TrainerWorker], R]) -> list[R]:
        return self._collect([process.run.remote(call) for process in self._processes])

    def _by_rank(self, call: Callable[[TrainerWorker, S], R], shares: Sequence[S]) -> list[R]:
        """Calls each worker with the share of its data-parallel rank, which reaches a node once."""
        held = [ray.put(share) for share in shares]
        processes = zip(self._processes, self._places, strict=True)
        return self._collect([process.run.remote(call, held[dp_rank]) for process, (dp_rank, _) in processes])


def learn(
    config: RLConfig,
    trainers: TrainerGroup,
    rollouts: Sequence[Sequence[TrainRollout]],
    kept: Sequence[Sequence[TrainRollout]],
    version: int,
) -> dict[str, float]:
    """Checks that engines and trainer agree on groups of rollouts, then trains on the kept ones, if any.

    `version` is that of the current weights.
    """
    mismatch = trainers.check_engines(choose_probes(rollouts, version), version)
    if not kept:
        return mismatch | {"skipped_steps": 0.0}
    trained = trainers.train(split_groups(kept, config.algorithm.num_minibatches), version)
    return mismatch | trained | measure_advantage(kept)


def choose_probes(rollouts: Sequence[Sequence[TrainRollout]], version: int) -> list[TrainRollout]:
    """Returns some of the rollouts that engines wrote, to be scored with the weights of this version.

    Of groups and of their rollouts those with the largest share of tokens that these weights sampled, and of equal ones
    the first.
    """
    groups = [[r for r in group if r.logprobs is not None and len(r.token_ids)] for group in rollouts]
    shares = {id(r): float(r.find_fresh(version).mean()) for group in groups for r in group}
    groups = [sorted(group, key=lambda r: -shares[id(r)]) for group in groups if group]
    groups.sort(key=lambda group: -shares[id(group[0])])
    return [rollout for group in groups[:PROBE_GROUPS] for rollout in group[:PROBE_ROLLOUTS]]
