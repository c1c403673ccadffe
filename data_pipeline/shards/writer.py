"""Writes samples into shards with their index; format.py describes such a folder.

A folder is written in parts, by any number of processes, in any order: the same samples in the same parts give
the same bytes. Names depend on the part alone. A finished part has a record, part-000007.json; a part that was
killed has none and is written again. Once all parts are there, index.json replaces their records.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from data_pipeline.encode.image_header import image_format, image_size
from data_pipeline.errors import BadSample
from data_pipeline.files import atomic_writer, read_json, to_json
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import to_fields
from data_pipeline.shards.index import (
    INDEX,
    VERSION,
    Shard,
    ShardIndex,
    Sizes,
    VideoSizes,
    estimate_image_tokens,
    estimate_video_tokens,
    rows_path,
)
from data_pipeline.types import Sample


def write_shards(
    samples: Iterable[Sample], out: str | Path, writer: ShardConfig = ShardConfig()
) -> ShardIndex:
    """Writes `samples` into `out` as one part, and returns the index. After a kill the next call starts over.

    Raises:
        ValueError: `out` already holds finished shards or foreign tar files, or another process writes there.
    """
    _record_path(Path(out), 0).unlink(missing_ok=True)
    stream = tqdm(samples, desc=f"write {Path(out).name}", unit=" samples", disable=None, delay=1)
    write_part(stream, out, 0, writer)
    return finish_shards(out, 1)


def write_part(
    samples: Iterable[Sample], out: str | Path, part: int, writer: ShardConfig = ShardConfig()
) -> tuple[Shard, ...]:
    """Writes part number `part` of a folder; a finished part is returned as recorded, and `samples` stay unread.

    Memory holds one sample, and a few numbers for each sample of the open shard. Ids that occur twice are left to
    `omr data validate`: no part sees the others.

    Raises:
        ValueError: `out` is finished or holds foreign tar files, or another process is writing this part.
    """
    out = Path(out)
    if (out / INDEX).exists():
        raise ValueError(f"{out} already holds shards; choose another folder, or delete it")
    record = _record_path(out, part)
    if record.exists():
        return _read_record(record)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(record.with_suffix(".lock")):
        if record.exists():  # written by the process that held the lock before
            return _read_record(record)
        if part == 0:  # before anything is written; a shard that this function wrote has its rows
            _check_foreign_tars(out, lambda path: rows_path(path).exists())
        # tars before their rows, so that a kill here leaves no tar that looks foreign
        for path in sorted(out.glob(f"shard-{part:06d}-[0-9]*"), reverse=True):
            path.unlink()
        stream = iter(samples)
        shards = tuple(
            _write_shard(chain([first], stream), out / f"shard-{part:06d}-{number:04d}.tar", writer)
            for number, first in enumerate(stream)  # what the shard before left
        )
        with atomic_writer(record) as file:
            file.write(_json({"shards": [asdict(shard) for shard in shards]}))
    return shards


def finish_shards(out: str | Path, num_parts: int) -> ShardIndex:
    """Writes the index over parts 0 to `num_parts` - 1, which completes the folder; may be repeated.

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
                f"{missing[0]}; repeat the command that writes them, it continues after the finished ones"
            )
        shards = [shard for record in records for shard in _read_record(record)]
        written = {shard.file for shard in shards}
        _check_foreign_tars(out, lambda path: path.name in written)
        with atomic_writer(out / INDEX) as file:
            file.write(_json({"version": VERSION, "shards": [asdict(shard) for shard in shards]}))
    for record in records:
        record.unlink(missing_ok=True)
    return ShardIndex.load(out)


def _record_path(out: Path, part: int) -> Path:
    return out / f"part-{part:06d}.json"


def _read_record(path: Path) -> tuple[Shard, ...]:
    return tuple(Shard(**row) for row in read_json(path)["shards"])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a part. It ends with this process, however that ends."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing {path.stem} of {path.parent}; wait for it, or choose another folder"
            ) from error
        yield
        path.unlink(missing_ok=True)


def _check_foreign_tars(out: Path, is_shard: Callable[[Path], bool]) -> None:
    if foreign := sorted(path.name for path in out.glob("*.tar") if not is_shard(path)):
        raise ValueError(
            f"{out} holds {foreign[0]!r}, not one of its shards; move it away, or use an empty folder"
        )


def _write_shard(samples: Iterator[Sample], path: Path, writer: ShardConfig) -> Shard:
    """Writes one shard of the next samples; takes no more of them than it writes."""
    rows: dict[str, list] = {
        name: [] for name in ("ids", "offsets", "sizes", "crc32", "tokens", "images", "videos")
    }
    sha256, offset, num_scaled = hashlib.sha256(), 0, 0
    prefix = path.stem.removeprefix("shard-")
    with atomic_writer(path) as file:
        for original in samples:
            sample, scaled, sizes, videos = _scale_images(original, writer.max_pixels)
            num_scaled += scaled
            data = b"".join(_members(f"{prefix}-{len(rows['ids']):06d}", sample))
            file.write(data)
            sha256.update(data)
            place = (sample.id, offset, len(data), zlib.crc32(data))
            tokens = _estimate_tokens(sample, sizes, videos)
            row = (*place, tokens, [*chain.from_iterable(sizes)], [*chain.from_iterable(videos)])
            for column, value in zip(rows.values(), row, strict=True):
                column.append(value)
            offset += len(data)
            if offset >= writer.target_bytes or len(rows["ids"]) == writer.samples_per_shard:
                break
        end = bytes(2 * tarfile.BLOCKSIZE)
        end += bytes(-(offset + len(end)) % tarfile.RECORDSIZE)
        sha256.update(end)
        file.write(end)
        if not any(rows["videos"]):
            del rows["videos"]
        with atomic_writer(rows_path(path)) as rows_file:  # before the shard: see write_part
            rows_file.write(_json(rows))
    size, digest = offset + len(end), sha256.hexdigest()
    return Shard(file=path.name, count=len(rows["ids"]), bytes=size, sha256=digest, scaled=num_scaled)


def _members(key: str, sample: Sample) -> Iterator[bytes]:
    """Yields a sample's bytes in a tar: of each member its header, its data, and zeros up to the next block."""
    names = [f"{number}.{image_format(image) or 'bin'}" for number, image in enumerate(sample.images)]
    frame_names = [
        [f"video{number}-{i:04d}.{image_format(frame) or 'bin'}" for i, frame in enumerate(video.frames)]
        for number, video in enumerate(sample.videos)
    ]
    frames = [frame for video in sample.videos for frame in video.frames]
    members = [("json", _json(to_fields(sample, names, frame_names)))]
    members += zip([*names, *chain.from_iterable(frame_names)], [*sample.images, *frames], strict=True)
    for name, data in members:
        member = tarfile.TarInfo(f"{key}.{name}")  # owner, group and time stay 0: samples alone decide bytes
        member.size = len(data)
        yield member.tobuf(tarfile.USTAR_FORMAT)
        yield data
        yield bytes(-len(data) % tarfile.BLOCKSIZE)


def _scale_images(sample: Sample, max_pixels: int) -> tuple[Sample, int, Sizes, VideoSizes]:
    """Returns the sample with images and frames over the cap scaled down, their number, and the sizes of all."""
    images, sizes, scaled = _scale_all(sample.images, max_pixels)
    videos, video_sizes = [], []
    for video in sample.videos:
        frames, of_frames, smaller = _scale_all(video.frames, max_pixels)
        scaled += smaller
        videos.append(replace(video, frames=frames))
        video_sizes.append((len(frames), *(of_frames[0] if frames else (0, 0))))
    sample = replace(sample, images=images, videos=tuple(videos)) if scaled else sample
    return sample, scaled, sizes, tuple(video_sizes)


def _scale_all(images: Sequence[bytes], max_pixels: int) -> tuple[tuple[bytes, ...], Sizes, int]:
    found = [_scale_image(image, max_pixels) for image in images]
    scaled = sum(new is not old for (new, _), old in zip(found, images, strict=True))
    return tuple(image for image, _ in found), tuple(size for _, size in found), scaled


def _estimate_tokens(sample: Sample, sizes: Sizes, videos: VideoSizes) -> int:
    """Returns a rough number of tokens, for comparing samples: four characters count as one."""
    text = sum(len(message.content) for message in sample.messages) // 4
    return text + estimate_image_tokens(sizes) + estimate_video_tokens(videos)


def _scale_image(image: bytes, max_pixels: int) -> tuple[bytes, tuple[int, int]]:
    """Returns the image and its size; bytes that are no image stay, with (0, 0): the loader skips and counts them."""
    size = (0, 0)
    with suppress(BadSample):
        size = image_size(image)
        if 0 < max_pixels < math.prod(size):
            from data_pipeline.encode.images import scale_down

            image = scale_down(image, max_pixels)
            size = image_size(image)
    return image, size


def _json(value: dict) -> bytes:
    dump = partial(to_json, value, sort_keys=True, compact=True)
    try:
        return dump(ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair; `omr data validate` reports it
        return dump(ascii=True).encode()
