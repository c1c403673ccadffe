"""Samples on disk: WebDataset shards that any WebDataset reader can read, and an index for random access.

    folder/index.json                    one row per shard; written last, so a folder with an index is complete
    folder/shard-000000-0000.tar         `{key}.json`, `{key}.0.png`, `{key}.1.jpg`, ...; part and number of the shard
    folder/shard-000000-0000.index.json  of each sample id, offset, size, CRC-32, estimated tokens, images' sizes

The frames of a video are members like images, `{key}.video0-0000.jpg`, ..., behind those; the json member names them in
`videos`, which samples without videos do not have.

The same samples give the same bytes. WebDataset ends a key at the first dot, and ids hold slashes and dots, so the
id is in the json member, which holds everything of a sample except the bytes of its images.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from data_pipeline.encode.video_times import check_video
from data_pipeline.errors import BadSample, describe
from data_pipeline.files import parse_json
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.tar_walk import find_compression
from data_pipeline.storage import join, read_range
from data_pipeline.types import ROLES, Message, Sample, SampleRef, Video

READ_BYTES = 8 << 20
"""Bytes of a shard that are read at once where samples are read in order."""
FIELDS = {"id": str, "source": str, "messages": list, "images": list, "answer": str, "metadata": dict}
"""The fields of a sample's json member."""
VIDEO_FIELDS = {"frames": list, "indices": list, "fps": (int, float), "num_source_frames": int}
"""Those of each of its `videos`; `frames` are names of members."""
_HEADER = tarfile.BLOCKSIZE


def read_sample(folder: str | Path, ref: SampleRef) -> Sample:
    """Reads one sample from its place in a shard: one read, or one request.

    Raises:
        BadSample: the shard is missing, torn or corrupt there, or another sample lies at that place.
        ConnectionError: the address cannot be reached.
    """
    try:
        data = read_range(join(folder, ref.shard), ref.offset, ref.size)
    except ConnectionError:
        raise
    except OSError as error:
        raise BadSample("unreadable", f"{_place(ref)}: {error}") from error
    return parse_sample(data, ref)


def parse_sample(data: bytes, ref: SampleRef) -> Sample:
    """Returns the sample whose tar members are `data`.

    Raises:
        BadSample: `checksum` or `unreadable`; `schema` where the json member is not as FIELDS; `video`.
    """
    if len(data) == ref.size and ref.crc32 not in (None, zlib.crc32(data)):
        cause = find_compression(data) or "not the bytes that were written; copy the shard again"
        raise BadSample("checksum", f"{_place(ref)}: {cause}")
    try:
        sample = _read_members(data)
    except BadSample:
        raise
    except (tarfile.TarError, ValueError) as error:
        cause = find_compression(data) or error  # of a whole shard, which is seen at its first sample
        raise BadSample("unreadable", f"{_place(ref)}: {cause}") from error
    if sample.id != ref.id:
        raise BadSample("unreadable", f"{_place(ref)}: found {sample.id!r}; the index is of another shard")
    return sample


def read_shard(
    index: ShardIndex, number: int, bad: Callable[[str, BadSample], None] | None = None
) -> Iterator[Sample]:
    """Yields the samples of the `number`-th shard in order, read as a stream.

    Args:
        bad: is called with the id and the error of each unreadable sample, which is then skipped.

    Raises:
        BadSample: a sample cannot be read, and `bad` is None.
    """
    shard, rows = index.shards[number], index.rows(number)
    place, data, start = join(index.folder, shard.file), b"", 0  # data: the shard's bytes from `start` on
    for row in range(shard.count):
        ref = rows.ref(shard, row)
        if ref.offset + ref.size > start + len(data):
            start, data = ref.offset, read_range(place, ref.offset, max(ref.size, READ_BYTES))
        at = ref.offset - start
        try:
            yield parse_sample(data[at : at + ref.size], ref)
        except BadSample as error:
            if bad is None:
                raise
            bad(ref.id, error)


def read_shards(folder: str | Path) -> Iterator[Sample]:
    """Yields all samples of a folder or mixture in the order they were written."""
    index = ShardIndex.load(folder)
    for number in range(len(index.shards)):
        yield from read_shard(index, number)


def find_wrong_fields(fields: dict) -> Iterator[str]:
    """Yields what is wrong with the json member of a sample."""
    for name, kind in FIELDS.items():
        if not isinstance(fields.get(name), kind):
            yield f"{name}: wanted {kind.__name__}, saw {describe(fields.get(name))}"
    if not fields.get("id"):
        yield "id: empty"
    images, turns = fields.get("images"), fields.get("messages")
    if isinstance(images, list) and not all(isinstance(image, str) for image in images):
        yield "images: wanted names of members"
    yield from _find_wrong_videos(fields.get("videos", []))
    if turns == []:
        yield "messages: empty"
    for number, turn in enumerate(turns if isinstance(turns, list) else ()):
        has_text = isinstance(turn, dict) and isinstance(turn.get("content"), str)
        if not has_text or turn.get("role") not in ROLES:
            yield f"messages: turn {number} has no content, or no role of {', '.join(ROLES)}"


def _find_wrong_videos(videos: object) -> Iterator[str]:
    if not isinstance(videos, list):
        yield f"videos: wanted list, saw {describe(videos)}"
        return
    for number, video in enumerate(videos):
        if not isinstance(video, dict):
            yield f"videos[{number}]: wanted dict, saw {describe(video)}"
            continue
        for name, kind in VIDEO_FIELDS.items():
            if not isinstance(video.get(name), kind):
                yield f"videos[{number}].{name}: saw {describe(video.get(name))}"
        frames, indices = video.get("frames"), video.get("indices")
        if isinstance(frames, list) and not all(isinstance(frame, str) for frame in frames):
            yield f"videos[{number}].frames: wanted names of members"
        if isinstance(indices, list) and not all(type(index) is int for index in indices):
            yield f"videos[{number}].indices: wanted whole numbers"


def to_fields(sample: Sample, image_names: list[str], frame_names: Sequence[list[str]] = ()) -> dict:
    """Returns the json member of a sample; names are the extensions of the members of images, and of frames."""
    fields = asdict(replace(sample, images=(), videos=())) | {"images": image_names}
    del fields["videos"]
    if sample.videos:
        fields["videos"] = [
            {**asdict(replace(video, frames=())), "frames": names}
            for video, names in zip(sample.videos, frame_names, strict=True)
        ]
    return fields


def member_names(fields: dict) -> list[str]:
    """Returns the extensions of a sample's members behind the json, in order: its images, then frames of videos."""
    return [*fields["images"], *(name for video in fields.get("videos", ()) for name in video["frames"])]


def parse_videos(fields: dict, frames: Sequence[bytes]) -> tuple[Video, ...]:
    """Returns the videos of a json member without wrong fields; `frames` are the members of all of them, in order."""
    rest = iter(frames)
    return tuple(
        Video(
            frames=tuple(islice(rest, len(video["frames"]))),
            indices=tuple(video["indices"]),
            fps=video["fps"],
            num_source_frames=video["num_source_frames"],
        )
        for video in fields.get("videos", ())
    )


def _read_members(data: bytes) -> Sample:
    text, place = _read_member(data, 0, ".json")
    fields = parse_json(text)
    if not isinstance(fields, dict):
        raise BadSample("schema", f"its json member is {describe(fields)}, not an object")
    if wrong := next(find_wrong_fields(fields), None):
        raise BadSample("schema", f"its json member has wrong fields: {wrong}")
    members = list[bytes]()
    for name in member_names(fields):
        member, place = _read_member(data, place, f".{name}")
        members.append(member)
    num_images = len(fields["images"])
    if place < len(data):
        raise BadSample(
            "schema", f"its json member does not name all of its members: {place} of {len(data)} bytes"
        )
    videos = parse_videos(fields, members[num_images:])
    for video in videos:
        check_video(video)
    return Sample(
        id=fields["id"],
        source=fields["source"],
        messages=tuple(Message(role=turn["role"], content=turn["content"]) for turn in fields["messages"]),
        images=tuple(members[:num_images]),
        videos=videos,
        answer=fields["answer"],
        metadata=fields["metadata"],
    )


def _read_member(data: bytes, place: int, suffix: str) -> tuple[bytes, int]:
    """Returns the member whose header is at `place`, and the place of the next header."""
    member = tarfile.TarInfo.frombuf(data[place : place + _HEADER], "utf-8", "strict")
    if "/" in member.name or not member.name.endswith(suffix) or not member.isreg():
        raise ValueError(f"found member {member.name!r} where a plain file ending in {suffix!r} should be")
    start, end = place + _HEADER, place + _HEADER + member.size
    if end > len(data):
        raise ValueError(
            f"member {member.name!r} ends after {len(data) - start} of {member.size} bytes: the shard is torn"
        )
    return data[start:end], end + -member.size % _HEADER


def _place(ref: SampleRef) -> str:
    return f"{ref.id!r} at byte {ref.offset} of {ref.shard}"
