"""Shards -> this rank's packed micro-batches of each optimizer step, for ever.

The order of samples is a function of (data, seed), see order.py; steps take the next `global_batch_size` of it,
and an epoch's last samples open the next epoch's first step. All ranks compute the same steps and the same
split of each step over ranks, and read only their own samples. So the whole state is one place in one order,
which does not depend on the number of ranks.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.errors import BadSample
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.loader.order import Draw, draws
from data_pipeline.loader.packing import balance, blank, pack, padded_length
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import load_samples
from data_pipeline.types import Example, PackedBatch, SampleRef

log = logging.getLogger(__name__)

Step = tuple[Draw, ...]
"""The samples of one optimizer step, all ranks, before anything is read."""
Encoded = Example | tuple[str, BadSample]
"""What became of a sample; of a bad one its id, and why."""
Packed = tuple[list[PackedBatch], list[tuple[str, BadSample]]]
"""This rank's micro-batches of a step, and its bad samples."""


class Loader:
    """Iterating yields list[PackedBatch]: this rank's micro-batches of one optimizer step.

    A rank whose samples were all bad gets a blank micro-batch, so that it keeps step with the others. State
    follows what was handed out, not what is read ahead; a fresh iterator continues there. Bad samples are
    logged, and counted by reason in `skipped` (of this rank, since this process began).
    """

    def __init__(
        self,
        config: LoaderConfig,
        encoder: ChatEncoder,
        *,
        dp_rank: int,
        dp_size: int,
        multiple: int = 1,
        pin: bool = False,
    ) -> None:
        """
        Args:
            multiple: every packed sequence is padded to a multiple of this many tokens.
            pin: hand over batches in pinned memory, from which a GPU copies while it computes.

        Raises:
            ValueError: no shards, no samples, or fewer samples a step than ranks.
        """
        if not 0 <= dp_rank < dp_size <= config.global_batch_size:
            raise ValueError(
                f"dp_rank={dp_rank} of dp_size={dp_size} with loader.global_batch_size="
                f"{config.global_batch_size}: every rank needs "
                "at least one sample a step; raise the batch size or use fewer ranks"
            )
        self._config, self._encoder, self._pin = config, encoder, pin
        self._dp_rank, self._dp_size, self._multiple = dp_rank, dp_size, multiple
        self._index = load_samples(config.shards)
        self._epoch, self._position = 0, 0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        for step, (batches, bad) in self._ahead() if self._config.num_workers else self._in_line():
            self._count(bad)
            self._epoch, self._position = step[-1].epoch, step[-1].position
            yield batches

    def state_dict(self) -> dict[str, int | str]:
        """The place behind the last step handed out, and what it is a place in. The same on all ranks."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self._config.seed,
            "data": self._index.digest,
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on behind that place, from the next iterator on, with any number of ranks or samples a step.

        Raises:
            ValueError: the state belongs to other data, another mixture of them, or another seed.
        """
        for name, here in (("data", self._index.digest), ("seed", self._config.seed)):
            if state[name] != here:
                raise ValueError(
                    f"the saved loader state has {name}={state[name]!r}, but loader.shards="
                    f"{self._config.shards!r} with loader.seed={self._config.seed} has {here!r}; "
                    "resume with the same shards and seed"
                )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def _steps(self) -> Iterator[Step]:
        order = draws(self._index, self._config.seed, self._epoch, self._position)
        while True:
            yield tuple(islice(order, self._config.global_batch_size))

    def _in_line(self) -> Iterator[tuple[Step, Packed]]:
        for step in self._steps():
            yield step, self._pack([self._encode(ref) for ref in self._share(step)])

    def _ahead(self) -> Iterator[tuple[Step, Packed]]:
        """The same by threads, `prefetch` steps ahead of the consumer; they share the samples of a step."""
        pool = ThreadPoolExecutor(self._config.num_workers, thread_name_prefix="loader")
        pending: deque[tuple[Step, Future]] = deque()
        try:
            for step in self._steps():
                encoded = [pool.submit(self._encode, ref) for ref in self._share(step)]
                # it waits for tasks that were begun before it, so the pool cannot lock up
                pending.append(
                    (step, pool.submit(lambda some: self._pack([e.result() for e in some]), encoded))
                )
                if len(pending) > self._config.prefetch:
                    first, packed = pending.popleft()
                    yield first, packed.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _share(self, step: Step) -> list[SampleRef]:
        """This rank's samples of a step."""
        mine = balance([draw.tokens for draw in step], self._dp_size)[self._dp_rank]
        return [step[i].ref for i in mine]

    def _encode(self, ref: SampleRef) -> Encoded:
        """Read and encode a sample. Runs in a worker and changes nothing here."""
        try:
            example = self._encoder.encode(read_sample(self._index.folder, ref))
            length = padded_length(len(example), self._multiple)
            if length > self._config.pack_length:
                raise BadSample(
                    "too_long", f"{length} tokens, more than loader.pack_length={self._config.pack_length}"
                )
        except BadSample as error:
            return ref.id, error
        return example

    def _pack(self, encoded: Sequence[Encoded]) -> Packed:
        """Pack what can be packed. Runs in a worker and changes nothing here."""
        token = self._encoder.pad_token_id
        batches = pack(
            [one for one in encoded if isinstance(one, Example)],
            pack_length=self._config.pack_length,
            multiple=self._multiple,
            pad_token_id=token,
        ) or [blank(multiple=self._multiple, pad_token_id=token)]
        bad = [one for one in encoded if not isinstance(one, Example)]
        return [batch.pin() for batch in batches] if self._pin else batches, bad

    def _count(self, bad: Sequence[tuple[str, BadSample]]) -> None:
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
