"""The table of contents of a folder of shards, for random access; shards.py says what lies in such a folder."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import overload

from data_pipeline.types import SampleRef

INDEX = "index.json"
VERSION = 2
"""Of the layout that shards.py describes; shards of another are written again."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A row of index.json."""

    file: str  # name in the folder
    count: int  # samples
    bytes: int
    sha256: str
    scaled: int = 0  # images that a pixel cap scaled down


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """What the index knows of each sample of one shard."""

    ids: tuple[str, ...]
    offsets: tuple[int, ...]  # bytes
    sizes: tuple[int, ...]  # bytes of all its members, with their headers and padding
    crc32: tuple[int, ...]  # of these bytes
    tokens: tuple[int, ...]  # estimated, for balancing work without reading samples


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The table of contents of a folder of shards. Rows of samples are read when asked for, by shard."""

    folder: Path
    shards: tuple[Shard, ...]

    @classmethod
    def load(cls, folder: str | Path) -> ShardIndex:
        """Read `folder`/index.json.

        Raises:
            ValueError: there is no index, or it is not one of ours.
        """
        path = Path(folder) / INDEX
        if not path.is_file():
            raise ValueError(f"{path} does not exist; give a folder of shards that was written to its end")
        try:
            table = json.loads(path.read_text())
            shards = tuple(Shard(**row) for row in table["shards"])
            if table["version"] != VERSION:
                raise ValueError(f"version {table['version']}, not {VERSION}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not an index of shards ({error!r}); write the shards again"
            ) from error
        for shard in shards:
            if shard.file != Path(shard.file).name:
                raise ValueError(
                    f"{path} names the shard {shard.file!r}; a shard is a plain file name in its folder"
                )
        return cls(folder=Path(folder), shards=shards)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def refs(self) -> Sequence[SampleRef]:
        """References to all samples in the order they were written."""
        return _Refs(self)

    @property
    def digest(self) -> str:
        """Identifies the data, whatever folder it lies in."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:16]

    def locate(self, number: int) -> tuple[int, int]:
        """The shard that holds the `number`-th sample, and the sample's row in it."""
        shard = bisect_right(self._ends, number)
        return shard, number - (self._ends[shard] - self.shards[shard].count)

    def rows(self, shard: int) -> ShardRows:
        """The rows of the `shard`-th shard; the last few hundred shards asked for stay in memory."""
        return _read_rows(self.folder, self.shards[shard])

    def tokens(self, number: int) -> int:
        """Estimated tokens of the `number`-th sample."""
        shard, row = self.locate(number)
        return self.rows(shard).tokens[row]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(shard.count for shard in self.shards))


class _Refs(Sequence[SampleRef]):
    def __init__(self, index: ShardIndex) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, number: int) -> SampleRef: ...
    @overload
    def __getitem__(self, number: slice) -> list[SampleRef]: ...
    def __getitem__(self, number: int | slice) -> SampleRef | list[SampleRef]:
        numbers = range(len(self))[number]  # resolves negative numbers and slices, raises IndexError
        if isinstance(numbers, range):
            return [self[n] for n in numbers]
        shard, row = self._index.locate(numbers)
        rows = self._index.rows(shard)
        return SampleRef(id=rows.ids[row], shard=self._index.shards[shard].file, offset=rows.offsets[row])


def rows_path(shard: Path) -> Path:
    return shard.with_suffix(".index.json")


@lru_cache(maxsize=512)
def _read_rows(folder: Path, shard: Shard) -> ShardRows:
    path = rows_path(folder / shard.file)
    try:
        rows = ShardRows(**{name: tuple(values) for name, values in json.loads(path.read_text()).items()})
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); write the shards again") from error
    columns = (rows.ids, rows.offsets, rows.sizes, rows.crc32, rows.tokens)
    if any(len(column) != shard.count for column in columns):
        raise ValueError(f"{path} lists {len(rows.ids)} samples where {INDEX} counts {shard.count}")
    return rows
