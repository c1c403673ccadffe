"""One shard as a stream of samples, without what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data_pipeline.shard_index import ShardIndex
from data_pipeline.shards import read_sample
from data_pipeline.types import BadSample, Sample


def stream_shard(
    index: ShardIndex, number: int, on_bad: Callable[[str, BadSample], None]
) -> Iterator[Sample]:
    """The samples of the `number`-th shard in order; `on_bad` is called with the id of each unreadable one."""
    start = sum(shard.count for shard in index.shards[:number])
    for ref in index.refs[start : start + index.shards[number].count]:
        try:
            sample = read_sample(index.folder, ref)
        except BadSample as error:
            on_bad(ref.id, error)
            continue
        yield sample
