"""Samples on disk: WebDataset shards that any WebDataset reader can read, and an index for random access.

    folder/index.json               one row per shard; written last, so a folder with an index is complete
    folder/shard-000000.tar         `{key}.json`, `{key}.0.png`, `{key}.1.jpg`, ...; key: sample number
    folder/shard-000000.index.json  ids, byte offsets and estimated tokens of the shard's samples

The same samples give the same bytes. WebDataset ends a key at the first dot and ids hold slashes and dots, so
the id lives in the json member, which holds everything of a sample but the bytes of its images.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import BinaryIO, overload

from PIL import Image
from tqdm import tqdm

from data_pipeline.config import ImageConfig
from data_pipeline.types import BadSample, Message, Sample, SampleRef

INDEX = "index.json"
_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A row of index.json."""

    file: str  # name in the folder
    count: int  # samples
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """What the index knows of each sample of one shard."""

    ids: tuple[str, ...]
    offsets: tuple[int, ...]  # bytes
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
            shards = tuple(Shard(**row) for row in json.loads(path.read_text())["shards"])
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


def write_shards(samples: Iterable[Sample], out: str | Path, *, samples_per_shard: int = 1_000) -> ShardIndex:
    """Write `samples` into `out` and return the index. A killed write leaves no index; the next starts over.

    Raises:
        ValueError: `out` already holds finished shards, or tar files of others.
    """
    out = Path(out)
    if (out / INDEX).exists():
        raise ValueError(
            f"{out} already holds shards; load them with ShardIndex.load, or choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(out)
    stream = iter(tqdm(samples, desc=f"write {out.name}", unit=" samples", disable=None, delay=1))
    shards: list[Shard] = []
    while chunk := list(islice(stream, samples_per_shard)):
        first_key = len(shards) * samples_per_shard
        shards.append(_write_shard(chunk, out / f"shard-{len(shards):06d}.tar", first_key))
    _write_atomically(out / INDEX, _json({"version": 1, "shards": [asdict(shard) for shard in shards]}))
    return ShardIndex(folder=out, shards=tuple(shards))


def read_sample(folder: str | Path, ref: SampleRef) -> Sample:
    """Read one sample by its place in the shard.

    Raises:
        BadSample: the shard is missing, torn or corrupt there, or another sample lies at that place.
    """
    path = Path(folder) / ref.shard
    try:
        with path.open("rb") as file:
            file.seek(ref.offset)
            sample = _read_record(file)
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadSample("unreadable", f"{ref.id!r} at byte {ref.offset} of {path}: {error!r}") from error
    if sample.id != ref.id:
        raise BadSample(
            "unreadable",
            f"byte {ref.offset} of {path} holds {sample.id!r}, not {ref.id!r}: not this index's shard",
        )
    return sample


def read_shards(folder: str | Path) -> Iterator[Sample]:
    """All samples in order, read as a stream through webdataset."""
    import webdataset

    index = ShardIndex.load(folder)
    urls = [str(index.folder / shard.file) for shard in index.shards]
    for record in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        fields = json.loads(record["json"])
        yield _to_sample(fields, [record[name] for name in fields["images"]])


def _remove_unfinished(folder: Path) -> None:
    """Delete what a killed write left, and nothing else."""
    for rows in folder.glob("shard-*.index.json"):  # written before its shard
        rows.with_name(rows.name.replace(".index.json", ".tar")).unlink(missing_ok=True)
        rows.unlink()
    for partial in folder.glob("*.partial"):
        partial.unlink()
    if strangers := sorted(path.name for path in folder.glob("*.tar")):
        raise ValueError(f"{folder} holds {strangers[0]!r}, which is not ours; choose an empty folder")


# --- one shard


def _write_shard(samples: Sequence[Sample], path: Path, first_key: int) -> Shard:
    offsets = []
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, sample in enumerate(samples, first_key):
            offsets.append(tar.offset)
            names = [f"{number}.{_extension(image)}" for number, image in enumerate(sample.images)]
            _add_member(tar, f"{key:09d}.json", _json(_to_fields(sample, names)))
            for name, image in zip(names, sample.images, strict=True):
                _add_member(tar, f"{key:09d}.{name}", image)
    with partial.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    rows = {
        "ids": [s.id for s in samples],
        "offsets": offsets,
        "tokens": [_estimate_tokens(s) for s in samples],
    }
    _write_atomically(_rows_path(path), _json(rows))
    partial.replace(path)
    return Shard(file=path.name, count=len(samples), bytes=path.stat().st_size, sha256=sha256)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner, group and time stay 0, so that bytes depend on samples alone
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _read_record(file: BinaryIO) -> Sample:
    fields = json.loads(_read_member(file, ".json"))
    return _to_sample(fields, [_read_member(file, f".{name}") for name in fields["images"]])


def _read_member(file: BinaryIO, suffix: str) -> bytes:
    member = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
    if not member.name.endswith(suffix):
        raise ValueError(f"found member {member.name!r} where one ending in {suffix!r} should be")
    data = file.read(member.size)
    if len(data) < member.size:
        raise ValueError(
            f"member {member.name!r} ends after {len(data)} of {member.size} bytes: the shard is torn"
        )
    file.seek(-member.size % tarfile.BLOCKSIZE, os.SEEK_CUR)
    return data


def _rows_path(shard: Path) -> Path:
    return shard.with_suffix(".index.json")


@lru_cache(maxsize=512)
def _read_rows(folder: Path, shard: Shard) -> ShardRows:
    path = _rows_path(folder / shard.file)
    try:
        rows = ShardRows(**{name: tuple(values) for name, values in json.loads(path.read_text()).items()})
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); write the shards again") from error
    if not len(rows.ids) == len(rows.offsets) == len(rows.tokens) == shard.count:
        raise ValueError(f"{path} lists {len(rows.ids)} samples where {INDEX} counts {shard.count}")
    return rows


# --- one sample


def _to_fields(sample: Sample, image_names: list[str]) -> dict:
    return {
        "id": sample.id,
        "source": sample.source,
        "messages": [{"role": m.role, "content": m.content} for m in sample.messages],
        "images": image_names,
        "answer": sample.answer,
        "metadata": sample.metadata,
    }


def _to_sample(fields: dict, images: list[bytes]) -> Sample:
    return Sample(
        id=fields["id"],
        source=fields["source"],
        messages=tuple(Message(role=m["role"], content=m["content"]) for m in fields["messages"]),
        images=tuple(images),
        answer=fields["answer"],
        metadata=fields["metadata"],
    )


def _estimate_tokens(sample: Sample) -> int:
    """Four characters or 28 x 28 pixels a token: crude, but right in proportion."""
    tokens = sum(len(message.content) for message in sample.messages) // 4
    for image in sample.images:
        try:
            with Image.open(io.BytesIO(image)) as header:  # reads no pixels
                tokens += min(header.width * header.height, ImageConfig.max_pixels) // 784
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # the loader will skip and count it
    return tokens


def _extension(image: bytes) -> str:
    return next((name for signature, name in _SIGNATURES.items() if image.startswith(signature)), "bin")


def _json(value: dict) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
