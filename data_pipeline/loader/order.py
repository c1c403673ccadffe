"""The order in which samples are drawn: a function of the index, the seed and a place (deterministic).

Each source is an infinite stream of its own epochs: its shards are shuffled, then the samples within a window of
shards. An epoch of the mixture takes the next `count` samples of each stream, so that no sample of a source repeats
before all were drawn. The sources are interleaved at random block by block, each block with its share of every
source. So any place is reached with the work of one block and one window, and memory does not grow with the corpus.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import NamedTuple

import numpy as np

from data_pipeline.shards.index import ShardIndex, Sizes, Source, VideoSizes
from data_pipeline.types import SampleRef

SHUFFLE_SHARDS = 64
"""Shards of a window. The rows of one window of each source are in memory."""
BLOCK = 16_384
"""Samples, about, among which sources are interleaved."""
ROW_READERS = 16
"""Threads that read the rows of a window, to hide the latency of addresses."""
_INTERLEAVING = 0x6D6978  # seeds these draws apart from those within a source


Row = tuple[SampleRef, int, Sizes | None, VideoSizes]
"""The first fields of a Draw."""


class Draw(NamedTuple):
    """A sample, and the place in the order after it."""

    ref: SampleRef
    tokens: int  # estimated, of texts, images and videos
    images: Sizes | None  # None: the shard does not list them
    videos: VideoSizes
    epoch: int
    position: int  # samples of the epoch drawn so far, with this one


def iterate_draws(index: ShardIndex, seed: int, epoch: int = 0, position: int = 0) -> Iterator[Draw]:
    """Yields the samples of all epochs after that place, without end. The index must hold some, see load_samples."""
    counts = np.array([source.count for source in index.sources])
    blocks = -(-int(counts.sum()) // BLOCK)
    block = bisect_right(range(blocks), position, key=lambda b: int(_before(b, blocks, counts).sum())) - 1
    labels = _labels(seed, epoch, block, blocks, counts)
    before = _before(block, blocks, counts)
    skipped = labels[: position - int(before.sum())]
    starts = epoch * counts + before + np.bincount(skipped, minlength=len(counts))
    streams = [_stream(index, s, seed, int(n)) for s, n in zip(index.sources, starts, strict=True)]
    labels = labels[len(skipped) :]
    while True:
        for label in labels.tolist():
            position += 1
            yield Draw(*next(streams[label]), epoch, position)
        block += 1
        if block == blocks:
            epoch, position, block = epoch + 1, 0, 0
        labels = _labels(seed, epoch, block, blocks, counts)


def _before(block: int, blocks: int, counts: np.ndarray) -> np.ndarray:
    """Returns how many samples of each source an epoch draws before its `block`-th block of `blocks`."""
    return (2 * counts * block + blocks) // (2 * blocks)


def _labels(seed: int, epoch: int, block: int, blocks: int, counts: np.ndarray) -> np.ndarray:
    """Returns the number of the source that each sample of a block comes from."""
    quotas = _before(block + 1, blocks, counts) - _before(block, blocks, counts)
    rng = np.random.default_rng((seed, epoch, block, 0, _INTERLEAVING))
    return rng.permutation(np.repeat(np.arange(len(counts)), quotas))


def _stream(index: ShardIndex, source: Source, seed: int, start: int) -> Iterator[Row]:
    """Yields the infinite stream of a source from its `start`-th sample on: references, tokens and sizes of images."""
    counts = np.array([index.shards[number].count for number in source.shards], dtype=np.int64)
    first_epoch, position = divmod(start, max(1, source.size))
    for epoch in count(first_epoch):
        shards = np.random.default_rng((seed, epoch, 0, source.seed)).permutation(len(counts))
        for first in range(0, len(shards), SHUFFLE_SHARDS):
            window = shards[first : first + SHUFFLE_SHARDS]
            size = int(counts[window].sum())
            if position < size:
                order = np.random.default_rng((seed, epoch, first, source.seed)).permutation(size)[position:]
                yield from _read_window(index, [source.shards[n] for n in window], order)
            position = max(0, position - size)


def _read_window(index: ShardIndex, numbers: list[int], order: np.ndarray) -> Iterator[Row]:
    with ThreadPoolExecutor(ROW_READERS, thread_name_prefix="rows") as pool:
        tables = list(pool.map(index.rows, numbers))
    shards = [index.shards[number] for number in numbers]
    ends = np.cumsum([shard.count for shard in shards])
    places = np.searchsorted(ends, order, side="right")
    rows = order - np.append(0, ends[:-1])[places]
    for place, row in zip(places.tolist(), rows.tolist(), strict=True):
        table = tables[place]
        images, videos = table.images and table.images[row], table.videos[row] if table.videos else ()
        yield table.ref(shards[place], row), table.tokens[row], images, videos
