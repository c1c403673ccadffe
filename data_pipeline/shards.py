"""Samples on disk: WebDataset shards that any WebDataset reader can read, and an index for random access.

    folder/index.json                    one row per shard; written last, so a folder with an index is complete
    folder/shard-000000-0000.tar         `{key}.json`, `{key}.0.png`, `{key}.1.jpg`, ...; part and number of the shard
    folder/shard-000000-0000.index.json  of each sample id, byte offset, size, CRC-32 and estimated tokens

The same samples give the same bytes. WebDataset ends a key at the first dot and ids hold slashes and dots, so
the id lives in the json member, which holds everything of a sample but the bytes of its images.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipeline.shard_index import ShardIndex
from data_pipeline.types import BadSample, Message, Sample, SampleRef


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
