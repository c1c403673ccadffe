"""The index of a folder of shards (see format.py), or of a mixture of such folders.

A mixture is a folder with mixture.json: places of folders, and how many samples of each make an epoch. Its index
lists the shards of all its sources, with names relative to the mixture.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_pipeline.encode.config import ImageConfig
from data_pipeline.storage import is_local, join, read_bytes
from data_pipeline.types import SampleRef

INDEX = "index.json"
MIXTURE = "mixture.json"
VERSION = 2
"""Version of the layout in format.py; shards of another version must be written again."""
ROWS_IN_MEMORY = 16
"""Number of shards whose rows stay in memory for random access."""


Sizes = tuple[tuple[int, int], ...]
"""Width and height of each image of a sample, upright; (0, 0) for bytes that are no image."""
VideoSizes = tuple[tuple[int, int, int], ...]
"""Frames of each video of a sample, and width and height of the first."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A row of index.json."""

    file: str  # name in the folder; in a mixture relative to the mixture, or absolute
    count: int  # samples
    bytes: int
    sha256: str
    scaled: int = 0  # images and frames that a pixel cap scaled down


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """The index's columns of the samples of one shard."""

    ids: tuple[str, ...]
    offsets: array[int]  # bytes
    sizes: array[int]  # bytes of all its members, with their headers and padding
    crc32: array[int]  # of these bytes
    tokens: array[int]  # estimated, of texts, images and videos
    images: tuple[Sizes, ...] | None = None  # None: written before they were listed
    videos: tuple[VideoSizes, ...] | None = None  # None: no sample has one

    def ref(self, shard: Shard, row: int) -> SampleRef:
        return SampleRef(
            id=self.ids[row],
            shard=shard.file,
            offset=self.offsets[row],
            size=self.sizes[row],
            crc32=self.crc32[row],
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """A range of an index's shards, and how many of their samples an epoch draws."""

    name: str
    shards: range  # their numbers in the index
    size: int  # samples they hold
    count: int  # samples an epoch draws
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The shards of a folder or mixture, and by number the references of all their samples, read on demand."""

    folder: str  # its place
    shards: tuple[Shard, ...]
    mixed: tuple[Source, ...] = ()  # the sources of a mixture

    @classmethod
    def load(cls, place: str | Path) -> ShardIndex:
        """Reads index.json or mixture.json of a folder or an address; `place` may be mixture.json itself.

        Raises:
            ValueError: neither exists, it is not valid, or a source of the mixture has changed.
            ConnectionError: the address cannot be reached.
        """
        place = str(place).removesuffix("/").removesuffix("/" + MIXTURE)
        for name, load in ((INDEX, _load_folder), (MIXTURE, _load_mixture)):
            try:
                data = read_bytes(join(place, name))
            except (FileNotFoundError, NotADirectoryError):
                continue
            return load(place, data)
        raise ValueError(
            f"{join(place, INDEX)} does not exist, nor does {MIXTURE}; give a folder of completely written shards, "
            "or one of `omr data mix`"
        )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> SampleRef:
        """Returns the reference of the `number`-th sample in writing order, whether or not an epoch draws it."""
        shard, rows, row = self._find(range(len(self))[number])  # resolves -1, raises IndexError
        return rows.ref(shard, row)

    def __iter__(self) -> Iterator[SampleRef]:
        return map(self.__getitem__, range(len(self)))

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The sources of an epoch. A folder is a mixture of one source, all of it."""
        whole = Source(name="", shards=range(len(self.shards)), size=len(self), count=len(self))
        return self.mixed or (whole,)

    @cached_property
    def digest(self) -> str:
        """Identifies the data and, in a mixture, how it is drawn; independent of the place."""
        if not self.mixed:
            return _digest(shard.sha256 for shard in self.shards)
        return _digest(
            f"{s.count} {s.seed} {_digest(self.shards[n].sha256 for n in s.shards)}\n" for s in self.mixed
        )

    def rows(self, shard: int) -> ShardRows:
        """Reads the rows of the `shard`-th shard; raises ValueError if they are missing or of another shard."""
        return _read_rows(join(self.folder, self.shards[shard].file), self.shards[shard])

    def tokens(self, number: int) -> int:
        """Returns the estimated tokens of the `number`-th sample."""
        _, rows, row = self._find(number)
        return rows.tokens[row]

    def locate(self, ref: SampleRef) -> int:
        """Returns the number of the sample of a reference that self[number] or an epoch gave."""
        shard = self._numbers[ref.shard]
        rows = _recent_rows(join(self.folder, ref.shard), self.shards[shard])
        return self._ends[shard] - self.shards[shard].count + bisect_left(rows.offsets, ref.offset)

    def _find(self, number: int) -> tuple[Shard, ShardRows, int]:
        """Returns the shard of the `number`-th sample, its rows, from memory if recent, and the sample's row."""
        found = bisect_right(self._ends, number)
        shard = self.shards[found]
        rows = _recent_rows(join(self.folder, shard.file), shard)
        return shard, rows, number - (self._ends[found] - shard.count)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {shard.file: number for number, shard in enumerate(self.shards)}

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(shard.count for shard in self.shards))


def rows_path(shard: Path) -> Path:
    return shard.with_suffix(".index.json")


def holds_shards(place: str) -> bool:
    """Returns whether an index can be loaded there."""
    try:
        return bool(len(ShardIndex.load(place)))
    except (OSError, ValueError):
        return False


def load_samples(place: str | Path) -> ShardIndex:
    """Loads an index as ShardIndex.load; raises ValueError also if an epoch would draw no sample."""
    index = ShardIndex.load(place)
    if not sum(source.count for source in index.sources):
        raise ValueError(f"{str(place)!r} holds no samples; write some first")
    return index


def _load_folder(place: str, data: bytes) -> ShardIndex:
    path = join(place, INDEX)
    try:
        table = json.loads(data)
        shards = tuple(Shard(**row) for row in table["shards"])
        if table["version"] != VERSION:
            raise ValueError(f"version {table['version']}, not {VERSION}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an index of shards ({error!r}); write the shards again") from error
    for shard in shards:
        if shard.file != Path(shard.file).name or not is_local(shard.file):
            raise ValueError(f"{path} names the shard {shard.file!r}; it must be a plain file name")
    return ShardIndex(folder=place, shards=shards)


def _load_mixture(place: str, data: bytes) -> ShardIndex:
    path = join(place, MIXTURE)
    try:
        table = json.loads(data)
        seed = int(table["seed"])
        kinds = {"name": str, "place": str, "digest": str, "count": int}
        rows = [[kind(source[key]) for key, kind in kinds.items()] for source in table["sources"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a mixture ({error!r}); run `omr data mix` again") from error
    shards: list[Shard] = []
    mixed: list[Source] = []
    for number, (name, source, digest, count) in enumerate(rows):
        if not is_local(place) and is_local(source) and source.startswith("/"):
            raise ValueError(f"{path} names the local folder {source!r}; give an address or a relative path")
        found = ShardIndex.load(join(place, source))
        if found.mixed or found.digest != digest or count < 0 or (count and not len(found)):
            raise ValueError(
                f"{path} draws {count} samples of {source} with digest {digest!r}; there are {len(found)} with "
                f"{found.digest!r} now; run `omr data mix` again"
            )
        numbers = range(len(shards), len(shards) + len(found.shards))
        mixed.append(Source(name=name, shards=numbers, size=len(found), count=count, seed=seed + number))
        shards += [replace(shard, file=join(source, shard.file)) for shard in found.shards]
    return ShardIndex(folder=place, shards=tuple(shards), mixed=tuple(mixed))


def _read_rows(place: str, shard: Shard) -> ShardRows:
    path = place.removesuffix(".tar") + ".index.json"
    try:
        table = json.loads(read_bytes(path))
        numbers = {name: array("q", table[name]) for name in ("offsets", "sizes", "crc32", "tokens")}
        images = _group(table["images"], 2) if "images" in table else None
        videos = _group(table["videos"], 3) if "videos" in table else None
        rows = ShardRows(ids=tuple(table["ids"]), images=images, videos=videos, **numbers)
    except ConnectionError:
        raise
    except (OSError, KeyError, TypeError, OverflowError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); write the shards again") from error
    columns = (rows.ids, *numbers.values(), *(column for column in (images, videos) if column is not None))
    if any(len(column) != shard.count for column in columns):
        raise ValueError(f"{path} lists {len(rows.ids)} samples where {INDEX} counts {shard.count}")
    return rows


def estimate_image_tokens(sizes: Sizes) -> int:
    """Returns the part of `tokens` that images have: 28 x 28 pixels count as one, within the default cap."""
    return sum(min(width * height, ImageConfig.max_pixels) // 784 for width, height in sizes)


def estimate_video_tokens(videos: VideoSizes) -> int:
    """Returns the part of `tokens` that videos have: of each pair of frames, as an image."""
    cap = ImageConfig.frame_pixels
    return sum(-(-frames // 2) * (min(width * height, cap) // 784) for frames, width, height in videos)


def _group(column: list[list[int]], size: int) -> tuple[Any, ...]:
    """Returns lists of w, h, w, h, ... as tuples of `size` numbers; raises ValueError if they are no such numbers."""
    for flat in column:
        if len(flat) % size or not all(type(number) is int and number >= 0 for number in flat):
            raise ValueError(f"{flat} are no widths and heights, {size} numbers each")
    return tuple(tuple(zip(*[iter(flat)] * size, strict=True)) for flat in column)


_recent_rows = lru_cache(maxsize=ROWS_IN_MEMORY)(_read_rows)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]
