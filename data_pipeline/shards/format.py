"""Samples on disk: WebDataset shards that any WebDataset reader can read, and an index for random access.

    folder/index.json                    one row per shard; written last, so a folder with an index is complete
    folder/shard-000000-0000.tar         `{key}.json`, `{key}.0.png`, `{key}.1.jpg`, ...; part and number of the shard
    folder/shard-000000-0000.index.json  of each sample id, byte offset, size, CRC-32 and estimated tokens

The same samples give the same bytes. WebDataset ends a key at the first dot and ids hold slashes and dots, so
the id lives in the json member, which holds everything of a sample but the bytes of its images.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipeline.errors import BadSample
from data_pipeline.shards.index import ShardIndex
from data_pipeline.storage import join, read_range
from data_pipeline.types import Message, Sample, SampleRef

READ_BYTES = 8 << 20
"""About as much of a shard is read at a time where samples are read in order."""
FIELDS = {"id": str, "source": str, "messages": list, "images": list, "answer": str, "metadata": dict}
"""What the json member of a sample holds."""
_HEADER = tarfile.BLOCKSIZE


def read_sample(folder: str | Path, ref: SampleRef) -> Sample:
    """Read one sample by its place in the shard: one read, one request.

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
    """The sample whose tar members are `data`.

    Raises:
        BadSample: reason `checksum` or `unreadable` where they are not, `schema` where the json member is none of ours.
    """
    if len(data) == ref.size and ref.crc32 not in (None, zlib.crc32(data)):
        raise BadSample("checksum", f"{_place(ref)}: not the bytes that were written; copy the shard again")
    try:
        sample = _read_members(data)
    except (tarfile.TarError, ValueError, RecursionError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample("unreadable", f"{_place(ref)}: {error}") from error
    if sample.id != ref.id:
        raise BadSample("unreadable", f"{_place(ref)}: {sample.id!r} lies there: not this index's shard")
    return sample


def read_shard(
    index: ShardIndex, number: int, bad: Callable[[str, BadSample], None] | None = None
) -> Iterator[Sample]:
    """The samples of the `number`-th shard in order, read as a stream.

    Args:
        bad: gets the id of each sample that cannot be read, and why; it is left out.

    Raises:
        BadSample: a sample cannot be read, and there is no `bad` to tell.
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
    """All samples of a folder or mixture in the order they were written."""
    index = ShardIndex.load(folder)
    for number in range(len(index.shards)):
        yield from read_shard(index, number)


def _place(ref: SampleRef) -> str:
    return f"{ref.id!r} at byte {ref.offset} of {ref.shard}"


def _read_members(data: bytes) -> Sample:
    text, place = _read_member(data, 0, ".json")
    fields = _check(json.loads(text))
    images = []
    for name in fields["images"]:
        image, place = _read_member(data, place, f".{name}")
        images.append(image)
    return _to_sample(fields, images)


def _read_member(data: bytes, place: int, suffix: str) -> tuple[bytes, int]:
    """The member whose header is at `place`, and where the next one's is."""
    member = tarfile.TarInfo.frombuf(data[place : place + _HEADER], "utf-8", "strict")
    if "/" in member.name or not member.name.endswith(suffix) or not member.isreg():
        raise ValueError(f"found member {member.name!r} where a plain file ending in {suffix!r} should be")
    start, end = place + _HEADER, place + _HEADER + member.size
    if end > len(data):
        raise ValueError(
            f"member {member.name!r} ends after {len(data) - start} of {member.size} bytes: the shard is torn"
        )
    return data[start:end], end + -member.size % _HEADER


def _check(fields: object) -> dict:
    """`fields` as the json member of a sample must be; raises BadSample."""
    if not isinstance(fields, dict):
        raise BadSample("schema", f"its json member holds a {type(fields).__name__}, not an object")
    for name, kind in FIELDS.items():
        if not isinstance(fields.get(name), kind):
            raise BadSample(
                "schema", f"{name} in its json member is no {kind.__name__}: {fields.get(name)!r:.60}"
            )
    for message in fields["messages"]:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise BadSample("schema", f"a message is not {{role, content}}: {message!r:.60}")
    return fields


def to_fields(sample: Sample, image_names: list[str]) -> dict:
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
