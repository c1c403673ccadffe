"""Yields this rank's packed micro-batches of each optimizer step, without end.

The order of samples is a function of data and seed, see order.py; a step takes the next `global_batch_size` of
it, across the ends of epochs. All ranks compute the same steps and the same split of each step over ranks, and read
only their own samples. So the whole state is one place in one order, for any number of ranks.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Protocol

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.video_times import count_pairs
from data_pipeline.errors import BadSample, ErrorBudget
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.loader.cost import TOKENS_ALONE, CostModel, count_patches
from data_pipeline.loader.order import Draw, iterate_draws
from data_pipeline.loader.packing import balance, build_blank, pack, pack_capacity
from data_pipeline.loader.sharing import SharedBatches
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import estimate_image_tokens, estimate_video_tokens, load_samples
from data_pipeline.types import Example, PackedBatch, SampleRef

log = logging.getLogger(__name__)

Step = tuple[Draw, ...]
"""The samples of one optimizer step, of all ranks, before anything is read."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The change of the loader's state by a step: the place after it, and the counts of its bad samples."""

    epoch: int
    position: int
    bad: ErrorBudget


Packed = tuple[list[PackedBatch], StepRecord]
"""This rank's micro-batches of a step."""


class Peers(Protocol):
    """Ranks that get the same batches; megatron_omr/train/peers.py."""

    def share(
        self, read: Callable[[], tuple[list[PackedBatch], StepRecord]]
    ) -> tuple[list[PackedBatch], StepRecord]: ...


class Loader:
    """Iterating yields list[PackedBatch]: this rank's micro-batches of one optimizer step.

    A rank whose samples are all bad gets a blank micro-batch, so that it takes as many steps as the others. The state
    follows the steps handed out, not those read ahead; a fresh iterator continues there. Bad samples are logged
    and skipped.
    """

    def __init__(
        self,
        config: LoaderConfig,
        encoder: ChatEncoder,
        *,
        dp_rank: int,
        dp_size: int,
        multiple: int = 1,
        pack_multiple: int = 1,
        cost: CostModel = TOKENS_ALONE,
        pin: bool = False,
        peers: Peers | None = None,
    ) -> None:
        """
        Args:
            multiple: every packed sequence is padded to a multiple of this many tokens.
            pack_multiple: and every micro-batch, at its tail, to a multiple of this; itself one of `multiple`.
            cost: by which samples are balanced over ranks; see megatron_omr/flops.py.
            pin: yield batches in pinned memory, from which a GPU copies while it computes.
            peers: the ranks that get the same batches; one of them reads them into memory that all share, unpinned.

        Raises:
            ValueError: no shards, no samples, or fewer samples a step than ranks.
        """
        if not 0 <= dp_rank < dp_size <= config.global_batch_size:
            raise ValueError(
                f"dp_rank={dp_rank} of dp_size={dp_size} with loader.global_batch_size={config.global_batch_size}: "
                "every rank needs at least one sample a step; raise the batch size or use fewer ranks"
            )
        most = pack_capacity(config.pack_length, pack_multiple)
        if most == 0:
            raise ValueError(
                f"loader.pack_length={config.pack_length} must be at least {pack_multiple}, which this layout pads to"
            )
        limits = replace(encoder.limits, max_tokens=most, tokens_field="loader.pack_length")
        self._config, self._encoder, self._pin, self._peers = config, ChatEncoder(limits), pin, peers
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._multiple, self._pack_multiple = multiple, pack_multiple
        self._cost, self._has_warned = cost, False
        self._index = load_samples(config.shards)
        self._epoch, self._position = 0, 0
        self._bad = self._new_budget()

    @property
    def skipped(self) -> Counter[str]:
        """Bad samples of this rank since this process began, by reason."""
        return Counter(self._bad.counts)

    @property
    def first_skipped(self) -> str:
        """The first of them for each reason, a line each."""
        return self._bad.cases()

    @property
    def steps_per_epoch(self) -> int:
        return -(-sum(source.count for source in self._index.sources) // self._config.global_batch_size)

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        order = iterate_draws(self._index, self._config.seed, self._epoch, self._position)
        with closing(self._read(self._cut(order))) as steps:
            for batches, record in steps:
                self._bad.merge(record.bad)
                self._bad.check()
                self._epoch, self._position = record.epoch, record.position
                yield batches

    def read_once(self, limit: int = 0) -> Iterator[list[PackedBatch]]:
        """Yields the first samples of the order once, in as many steps on every rank; the state stays as it is.

        Args:
            limit: most samples; 0 is those of an epoch.
        """
        epoch = sum(source.count for source in self._index.sources)
        count, size = min(limit or epoch, epoch), self._config.global_batch_size
        order = islice(iterate_draws(self._index, self._config.seed), count)
        bad = self._new_budget()
        with closing(self._read(self._cut(order))) as steps:
            for batches, record in islice(steps, -(-count // size)):
                bad.merge(record.bad)
                bad.check()
                yield batches

    def state_dict(self) -> dict[str, int | str]:
        """Returns the place after the last step handed out, with the data and seed of its order. All ranks agree."""
        place = {"epoch": self._epoch, "position": self._position}
        return {**place, "seed": self._config.seed, "data": self._index.digest}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continues after that place, from the next iterator on, with any number of ranks or samples a step.

        Raises ValueError if the state belongs to other data, another mixture of them, or another seed.
        """
        for name, here in (("data", self._index.digest), ("seed", self._config.seed)):
            if state[name] != here:
                raise ValueError(
                    f"the saved loader state has {name}={state[name]!r}, but loader.shards="
                    f"{self._config.shards!r} with loader.seed={self._config.seed} has {here!r}; "
                    "resume with the same shards and seed"
                )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def _cut(self, order: Iterator[Draw]) -> Iterator[Step]:
        """Yields the steps of an order; of one that ends, the last may be short."""
        while step := tuple(islice(order, self._config.global_batch_size)):
            yield step

    def _read(self, steps: Iterator[Step]) -> Generator[Packed]:
        """Yields this rank's micro-batches of the steps, which it reads or gets from a peer."""
        with closing(self._ahead(steps) if self._config.num_workers else self._in_line(steps)) as packed:
            read = partial(next, packed)  # where another rank reads, it is never called, and no thread starts
            while True:
                yield self._peers.share(read) if self._peers else read()

    def _in_line(self, steps: Iterator[Step]) -> Generator[Packed]:
        for step in steps:
            refs = self._share(step)
            yield self._pack(step, refs, [partial(self._encode, ref) for ref in refs])

    def _ahead(self, steps: Iterator[Step]) -> Generator[Packed]:
        """Yields the same as _in_line; threads share the samples of a step, `prefetch` steps ahead of the consumer."""
        pool = ThreadPoolExecutor(self._config.num_workers, thread_name_prefix="loader")
        pending: deque[Future[Packed]] = deque()
        try:
            for step in steps:
                refs = self._share(step)
                encoded = [pool.submit(self._encode, ref).result for ref in refs]
                # no deadlock: it waits only for tasks that started before it
                pending.append(pool.submit(self._pack, step, refs, encoded))
                if len(pending) > self._config.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _share(self, step: Step) -> list[SampleRef]:
        """Returns this rank's samples of a step, in order: of equal cost with first_fit, else of equal number."""
        if self._config.packing == "next_fit":
            first, last = (len(step) * rank // self._dp_size for rank in (self._dp_rank, self._dp_rank + 1))
            return [draw.ref for draw in step[first:last]]
        mine = balance([self._estimate_cost(draw) for draw in step], self._dp_size)[self._dp_rank]
        return [step[i].ref for i in mine]

    def _estimate_cost(self, draw: Draw) -> float:
        """Returns the cost of a sample, from the length of its text and the sizes of its images."""
        if draw.images is None:
            self._warn_of_old_shards()
            return self._cost.sample(draw.tokens)
        limits = self._encoder.limits
        patches = count_patches(draw.images, limits.image, limits.patches)
        for frames, width, height in draw.videos:
            each = count_patches([(width, height)], limits.image.of_frames(frames), limits.patches)
            patches += each * count_pairs(frames)
        text = draw.tokens - estimate_image_tokens(draw.images) - estimate_video_tokens(draw.videos)
        return self._cost.sample(text + sum(patches) // limits.patches.merge**2, patches)

    def _warn_of_old_shards(self) -> None:
        if self._dp_rank == 0 and not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s does not list the sizes of images: ranks are balanced by estimated tokens, images' work in the "
                "vision tower left out; write the shards again to balance by all of it",
                self._config.shards,
            )

    def _encode(self, ref: SampleRef) -> Example:
        """Reads and encodes a sample. Threads call this and _pack, so neither changes the loader."""
        return self._encoder.encode(read_sample(self._index.folder, ref), self._config.loss_on)

    def _pack(
        self, step: Step, refs: Sequence[SampleRef], encoded: Sequence[Callable[[], Example]]
    ) -> Packed:
        """Packs this rank's samples that can be encoded, and logs and counts the others."""
        examples, bad = list[Example](), self._new_budget()
        bad.seen = len(refs)
        for ref, result in zip(refs, encoded, strict=True):
            try:
                examples.append(result())
            except BadSample as error:
                log.warning("skipped sample %s: %s", ref.id, error)
                bad.count(error.reason, f"{ref.id}: {error}")
        batches = pack(
            examples,
            pack_length=self._config.pack_length,
            multiple=self._multiple,
            pack_multiple=self._pack_multiple,
            pad_token_id=self._encoder.pad_token_id,
            packing=self._config.packing,
        )
        batches = batches or [
            build_blank(
                multiple=self._multiple,
                pack_multiple=self._pack_multiple,
                pad_token_id=self._encoder.pad_token_id,
            )
        ]
        if self._peers is not None:
            batches = SharedBatches(batches)
        elif self._pin:
            batches = [batch.pin() for batch in batches]
        return batches, StepRecord(epoch=step[-1].epoch, position=step[-1].position, bad=bad)

    def _new_budget(self) -> ErrorBudget:
        return ErrorBudget(
            limit=self._config.max_bad_samples,
            option="loader.max_bad_samples",
            fix=f"`omr data validate {self._config.shards}` shows what is broken; fix the data or raise the limit",
            unlimited=("too_long",),
        )
