"""Shards -> this rank's packed micro-batches of each optimizer step, for ever.

The order of an epoch is a function of (seed, epoch); steps take the next `global_batch_size` samples of it,
and an epoch's last samples open the next epoch's first step. All ranks compute the same steps and the same
split of each step over ranks, and read only their own samples. So the whole state is one place in one order,
which does not depend on the number of ranks.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from data_pipeline.chat import ChatEncoder
from data_pipeline.config import LoaderConfig
from data_pipeline.packing import balance, blank, pack, padded_length
from data_pipeline.shard_index import ShardIndex
from data_pipeline.shards import read_sample
from data_pipeline.types import BadSample, Example, PackedBatch, SampleRef

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

SHUFFLE_SHARDS = 64
"""Samples are shuffled within this many shards at a time, the shards themselves over the whole epoch: memory
stays flat however large the corpus, and a shard's rows are read once an epoch."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in the order of all epochs."""

    epoch: int = 0
    position: int = 0  # samples of this epoch that are already handed out


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step, before anything is read."""

    numbers: tuple[int, ...]  # of the step's samples in the index, all ranks
    end: Place


class Loader:
    """Iterating yields list[PackedBatch]: this rank's micro-batches of one optimizer step.

    A rank whose samples were all bad gets a blank micro-batch, so that it keeps step with the others. State
    follows what was handed out, not what is read ahead; a fresh iterator continues there. Bad samples are
    logged, and counted by reason in `skipped` (of this rank, since this process began).
    """

    def __init__(
        self, config: LoaderConfig, encoder: ChatEncoder, *, dp_rank: int, dp_size: int, multiple: int = 1
    ) -> None:
        """`multiple`: every packed sequence is padded to a multiple of this many tokens.

        Raises:
            ValueError: no shards, no samples, or fewer samples a step than ranks.
        """
        if not 0 <= dp_rank < dp_size <= config.global_batch_size:
            raise ValueError(
                f"dp_rank={dp_rank} of dp_size={dp_size} with loader.global_batch_size="
                f"{config.global_batch_size}: every rank needs "
                "at least one sample a step; raise the batch size or use fewer ranks"
            )
        self._config, self._encoder = config, encoder
        self._dp_rank, self._dp_size, self._multiple = dp_rank, dp_size, multiple
        self._index = ShardIndex.load(config.shards)
        if not len(self._index):
            raise ValueError(f"loader.shards={config.shards!r} holds no samples; write some first")
        self._place = Place()
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        steps = plan_steps(self._index, self._config, self._place)
        for step, (batches, bad) in map_ahead(self._load, steps, self._config.num_workers):
            self._count(bad)
            self._place = step.end
            yield batches

    def state_dict(self) -> dict[str, int | str]:
        """The place behind the last step handed out, and what it is a place in. The same on all ranks."""
        return {
            "epoch": self._place.epoch,
            "position": self._place.position,
            "seed": self._config.seed,
            "data": self._index.digest,
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on behind that place, from the next iterator on, with any number of ranks or samples a step.

        Raises:
            ValueError: the state belongs to other data or to another seed.
        """
        for name, here in (("data", self._index.digest), ("seed", self._config.seed)):
            if state[name] != here:
                raise ValueError(
                    f"the saved loader state has {name}={state[name]!r}, but loader.shards="
                    f"{self._config.shards!r} with loader.seed={self._config.seed} has {here!r}; "
                    "resume with the same shards and seed"
                )
        self._place = Place(epoch=int(state["epoch"]), position=int(state["position"]))

    def _load(self, step: Step) -> tuple[list[PackedBatch], list[tuple[str, BadSample]]]:
        """Read, encode and pack this rank's part of a step. Runs in a worker and changes nothing here."""
        costs = [self._index.tokens(number) for number in step.numbers]
        examples: list[Example] = []
        bad: list[tuple[str, BadSample]] = []
        for i in balance(costs, self._dp_size)[self._dp_rank]:
            ref = self._index.refs[step.numbers[i]]
            try:
                examples.append(self._encode(ref))
            except BadSample as error:
                bad.append((ref.id, error))
        batches = pack(
            examples,
            pack_length=self._config.pack_length,
            multiple=self._multiple,
            pad_token_id=self._encoder.pad_token_id,
        )
        return batches or [blank(multiple=self._multiple, pad_token_id=self._encoder.pad_token_id)], bad

    def _encode(self, ref: SampleRef) -> Example:
        example = self._encoder.encode(read_sample(self._index.folder, ref))
        length = padded_length(len(example), self._multiple)
        if length > self._config.pack_length:
            raise BadSample(
                "too_long", f"{length} tokens, more than loader.pack_length={self._config.pack_length}"
            )
        return example

    def _count(self, bad: list[tuple[str, BadSample]]) -> None:
        for sample_id, error in bad:
            log.warning("skipped sample %s: %s", sample_id, error)
            self.skipped[error.reason] += 1
            unreadable = self.skipped.total() - self.skipped["too_long"]
            if unreadable > self._config.max_bad_samples:
                raise ValueError(
                    f"more than loader.max_bad_samples={self._config.max_bad_samples} samples are bad "
                    f"({dict(self.skipped)}), the last one {sample_id}: {error}; mend the data or raise "
                    "the limit"
                )


def plan_steps(index: ShardIndex, config: LoaderConfig, place: Place) -> Iterator[Step]:
    """All steps from `place` on."""
    epoch, position = place.epoch, place.position
    numbers: list[int] = []
    while True:
        for number in epoch_order(index, config.seed, epoch, position):
            numbers.append(number)
            position += 1
            if len(numbers) == config.global_batch_size:
                yield Step(numbers=tuple(numbers), end=Place(epoch=epoch, position=position))
                numbers = []
        epoch, position = epoch + 1, 0


def epoch_order(index: ShardIndex, seed: int, epoch: int, position: int = 0) -> Iterator[int]:
    """Numbers of an epoch's samples in its order, without the first `position`."""
    counts = np.array([shard.count for shard in index.shards])
    first = np.cumsum(counts) - counts
    shards = np.random.default_rng((seed, epoch)).permutation(len(counts))
    for start in range(0, len(shards), SHUFFLE_SHARDS):
        window = shards[start : start + SHUFFLE_SHARDS]
        size = int(counts[window].sum())
        if position < size:
            numbers = np.concatenate([np.arange(first[s], first[s] + counts[s]) for s in window])
            yield from np.random.default_rng((seed, epoch, start)).permutation(numbers)[position:].tolist()
        position = max(0, position - size)


def map_ahead(fn: Callable[[T], R], items: Iterator[T], num_workers: int) -> Iterator[tuple[T, R]]:
    """Pairs (item, fn(item)) in order, `num_workers` threads working ahead of the consumer; 0: in line."""
    if num_workers == 0:
        yield from ((item, fn(item)) for item in items)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="loader")
    try:
        ahead = deque((item, pool.submit(fn, item)) for item in islice(items, num_workers))
        for following in items:
            ahead.append((following, pool.submit(fn, following)))
            item, result = ahead.popleft()
            yield item, result.result()
        yield from ((item, result.result()) for item, result in ahead)
    finally:
        pool.shutdown(cancel_futures=True)
