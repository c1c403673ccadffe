"""Samples -> shards with their index; shards.py says what lies in such a folder.

A folder is written in parts, by any number of processes, in any order: the same samples in the same parts give
the same bytes. Names depend on the part alone. A finished part has a record, part-000007.json; a killed one has
none and is written again. Once all parts are there, index.json takes the place of their records.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain, count, takewhile
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from data_pipeline.encode.config import ImageConfig
from data_pipeline.errors import BadSample
from data_pipeline.files import atomic_writer
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import to_fields
from data_pipeline.shards.index import INDEX, VERSION, Shard, ShardIndex, rows_path
from data_pipeline.sources.image_values import image_size
from data_pipeline.types import Sample

_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def write_shards(
    samples: Iterable[Sample],
    out: str | Path,
    *,
    target_bytes: int = ShardConfig.target_bytes,
    samples_per_shard: int = ShardConfig.samples_per_shard,
    max_pixels: int = ShardConfig.max_pixels,
) -> ShardIndex:
    """Write `samples` into `out`, as one part, and return the index. After a killed write the next starts over.

    Raises:
        ValueError: `out` already holds finished shards, or tar files of others; or another process writes there.
    """
    _record_path(Path(out), 0).unlink(missing_ok=True)
    stream = tqdm(samples, desc=f"write {Path(out).name}", unit=" samples", disable=None, delay=1)
    write_part(
        stream,
        out,
        0,
        target_bytes=target_bytes,
        samples_per_shard=samples_per_shard,
        max_pixels=max_pixels,
    )
    return finish_shards(out, 1)


def write_part(
    samples: Iterable[Sample],
    out: str | Path,
    part: int,
    *,
    target_bytes: int = ShardConfig.target_bytes,
    samples_per_shard: int = ShardConfig.samples_per_shard,
    max_pixels: int = ShardConfig.max_pixels,
) -> tuple[Shard, ...]:
    """Write part number `part` of a folder; its options are those of ShardConfig.

    A part that is finished is returned as recorded and `samples` stay unread. Memory holds one sample, and a few
    numbers for each of the open shard. Ids that occur twice are `omr data validate`'s to find: no part sees the
    others.

    Raises:
        ValueError: `out` is finished, holds tar files of others, or another process is writing this part.
    """
    limits = ShardConfig(
        target_bytes=target_bytes, samples_per_shard=samples_per_shard, max_pixels=max_pixels
    )
    out = Path(out)
    if (out / INDEX).exists():
        raise ValueError(
            f"{out} already holds shards; load them with ShardIndex.load, or choose another folder"
        )
    record = _record_path(out, part)
    if record.exists():
        return _read_record(record)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(_partial(record)) as file:
        if record.exists():  # by the process that just let go
            _partial(record).unlink(missing_ok=True)
            return _read_record(record)
        if part == 0:
            _refuse_strangers(out)
        _remove_unfinished(out, part)
        shards = tuple(_write_shards(iter(samples), out, part, limits))
        file.truncate(0)
        _write_through(file, _json({"shards": [asdict(shard) for shard in shards]}))
        _partial(record).replace(record)
    return shards


def finish_shards(out: str | Path, num_parts: int) -> ShardIndex:
    """Write the index over parts 0 to `num_parts` - 1, which makes the folder whole; a second call changes nothing.

    Raises:
        ValueError: parts are missing, or a tar file belongs to none of them.
    """
    out = Path(out)
    records = [_record_path(out, part) for part in range(num_parts)]
    if not (out / INDEX).exists():
        missing = [number for number, record in enumerate(records) if not record.exists()]
        if missing:
            raise ValueError(
                f"{len(missing)} of the {num_parts} parts of {out} are not written, the first is part "
                f"{missing[0]}; repeat the command that writes them, it goes on behind the finished ones"
            )
        shards = [shard for record in records for shard in _read_record(record)]
        ours = {shard.file for shard in shards}
        if strangers := sorted(path.name for path in out.glob("*.tar") if path.name not in ours):
            raise ValueError(f"{out} holds {strangers[0]!r}, which is not ours; move it away, and repeat")
        with atomic_writer(out / INDEX) as file:
            file.write(_json({"version": VERSION, "shards": [asdict(shard) for shard in shards]}))
    for record in records:
        record.unlink(missing_ok=True)
    return ShardIndex.load(out)


# --- parts


def shard_name(part: int, number: int) -> str:
    return f"shard-{part:06d}-{number:04d}.tar"


def _record_path(out: Path, part: int) -> Path:
    return out / f"part-{part:06d}.json"


def _read_record(path: Path) -> tuple[Shard, ...]:
    return tuple(Shard(**row) for row in json.loads(path.read_text())["shards"])


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The file that becomes a part's record, held by one process; the lock ends with it, however it ends."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing {path.with_suffix('').name} of {path.parent}; wait for it, or choose "
                "another folder"
            ) from error
        yield file


def _refuse_strangers(out: Path) -> None:
    """Before anything is written: a tar without its rows, which are written first, cannot be ours."""
    if strangers := sorted(path.name for path in out.glob("*.tar") if not rows_path(path).exists()):
        raise ValueError(f"{out} holds {strangers[0]!r}, which is not ours; choose an empty folder")


def _remove_unfinished(out: Path, part: int) -> None:
    """Delete what a killed write of this part left, and nothing else; the last first, so that no gap arises."""
    shards = (out / shard_name(part, number) for number in count())
    files = ((shard, rows_path(shard), _partial(shard)) for shard in shards)
    left = list(takewhile(lambda three: any(path.exists() for path in three), files))
    for path in out.glob(f"{rows_path(left[-1][0]).name}*.partial") if left else ():
        path.unlink(missing_ok=True)
    for path in chain.from_iterable(reversed(left)):
        path.unlink(missing_ok=True)


# --- shards


def _write_shards(samples: Iterator[Sample], out: Path, part: int, limits: ShardConfig) -> Iterator[Shard]:
    for number in count():
        first = next(samples, None)
        if first is None:
            return
        yield _write_shard(chain([first], samples), out / shard_name(part, number), limits)


def _write_shard(samples: Iterator[Sample], path: Path, limits: ShardConfig) -> Shard:
    """One shard of the next samples; takes no more of them than it writes."""
    rows: dict[str, list] = {"ids": [], "offsets": [], "sizes": [], "crc32": [], "tokens": []}
    sha256, offset, scaled = hashlib.sha256(), 0, 0
    prefix = path.stem.removeprefix("shard-")
    with _partial(path).open("wb") as file:
        for untouched in samples:
            sample = _within(untouched, limits.max_pixels)
            scaled += sum(new is not old for new, old in zip(sample.images, untouched.images, strict=True))
            size, crc32 = 0, 0
            for chunk in _members(f"{prefix}-{len(rows['ids']):06d}", sample):
                file.write(chunk)
                sha256.update(chunk)
                size, crc32 = size + len(chunk), zlib.crc32(chunk, crc32)
            row = (sample.id, offset, size, crc32, _estimate_tokens(sample))
            for column, value in zip(rows.values(), row, strict=True):
                column.append(value)
            offset += size
            if offset >= limits.target_bytes or len(rows["ids"]) == limits.samples_per_shard:
                break
        end = bytes(2 * tarfile.BLOCKSIZE)
        end += bytes(-(offset + len(end)) % tarfile.RECORDSIZE)
        sha256.update(end)
        _write_through(file, end)
    with atomic_writer(rows_path(path)) as file:  # before the shard: see _refuse_strangers
        file.write(_json(rows))
    _partial(path).replace(path)
    return Shard(
        file=path.name,
        count=len(rows["ids"]),
        bytes=offset + len(end),
        sha256=sha256.hexdigest(),
        scaled=scaled,
    )


def _members(key: str, sample: Sample) -> Iterator[bytes]:
    """A sample as a stretch of a tar: for each member its header, its bytes, and zeros up to the next block."""
    names = [f"{number}.{_extension(image)}" for number, image in enumerate(sample.images)]
    members = [("json", _json(to_fields(sample, names))), *zip(names, sample.images, strict=True)]
    for name, data in members:
        member = tarfile.TarInfo(f"{key}.{name}")  # owner, group and time stay 0: samples alone decide bytes
        member.size = len(data)
        yield member.tobuf(tarfile.USTAR_FORMAT)
        yield data
        yield bytes(-len(data) % tarfile.BLOCKSIZE)


def _extension(image: bytes) -> str:
    return next((name for signature, name in _SIGNATURES.items() if image.startswith(signature)), "bin")


# --- images


def _within(sample: Sample, max_pixels: int) -> Sample:
    """The sample with images over the cap scaled down; without a cap, and below it, images stay untouched."""
    if not max_pixels or all(_area(image) <= max_pixels for image in sample.images):
        return sample
    return replace(sample, images=tuple(_scaled(image, max_pixels) for image in sample.images))


def _scaled(image: bytes, max_pixels: int) -> bytes:
    if _area(image) <= max_pixels:
        return image
    from data_pipeline.encode.images import scale_down

    try:
        return scale_down(image, max_pixels)
    except BadSample:
        return image  # `omr data validate` and the loader name it


def _estimate_tokens(sample: Sample) -> int:
    """Four characters or 28 x 28 pixels a token: crude, but right in proportion."""
    text = sum(len(message.content) for message in sample.messages) // 4
    return text + sum(min(_area(image), ImageConfig.max_pixels) // 784 for image in sample.images)


def _area(image: bytes) -> int:
    """Pixels by the file's header; 0 of what is no image, which the loader skips and counts."""
    return math.prod(image_size(image) or (0, 0))


# --- files


def _write_through(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _json(value: dict) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
