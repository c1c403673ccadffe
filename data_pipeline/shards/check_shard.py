"""Checks one shard: its bytes, members and samples, and whether they are those that the index lists.

A problem names the shard, the place in it and the sample. Broken data never raises here.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipeline.encode.config import LimitsConfig
from data_pipeline.shards.check_sample import Findings, check_sample, read_fields, sample_name
from data_pipeline.shards.index import Shard, ShardIndex, ShardRows
from data_pipeline.shards.records import Record, read_records
from data_pipeline.shards.tar_walk import BadTar, TarMember, walk


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to check."""

    folder: Path
    file: str
    listed: Shard | None  # the index's row; None where there is no index
    quick: bool = False
    images: bool = False
    limits: LimitsConfig = LimitsConfig()

    @property
    def path(self) -> Path:
        return self.folder / self.file


def check_shard(job: ShardJob) -> Findings:
    """Returns everything that is wrong with one shard."""
    found = Findings(shard=job.file)
    if not job.path.is_file():
        found.add("missing-shard", "the index lists it, but it does not exist")
        return found
    size, listed = job.path.stat().st_size, job.listed
    if listed and size != listed.bytes:
        found.add("size", f"{size} bytes, the index says {listed.bytes}")
    rows = _read_rows(job, found)
    if job.quick:
        found.samples = listed.count if listed else 0
        found.id_hashes = _hash_ids(rows.ids if rows else ())
        return found
    with job.path.open("rb") as file:
        if listed and size == listed.bytes:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != listed.sha256:
                found.add("checksum", "its SHA-256 is not that of the index")
        if rows:
            _check_bytes(file, size, rows, found)
        found.id_hashes = _hash_ids(_check_samples(file, size, job, rows, found))
    found.samples = len(found.id_hashes)
    if not found.samples:
        found.add("empty", "it holds no sample")
    if listed and found.samples != listed.count:
        found.add("count", f"{found.samples} samples, the index says {listed.count}")
    return found


def sample_ids(job: ShardJob) -> list[str]:
    """Returns the ids behind `id_hashes`, to name those that occur twice."""
    found = Findings(shard=job.file)
    if job.quick:
        rows = _read_rows(job, found)
        return list(rows.ids) if rows else []
    with job.path.open("rb") as file:
        records = _read_records(file, job.path.stat().st_size, found)
        return [sample_name(read_fields(file, record, found), record) for record in records]


def _read_rows(job: ShardJob, found: Findings) -> ShardRows | None:
    if job.listed is None:
        return None
    try:
        rows = ShardIndex(folder=str(job.folder), shards=(job.listed,)).rows(0)
    except ValueError as error:
        found.add("rows", str(error))
        return None
    if all(isinstance(i, str) for i in rows.ids) and min((*rows.offsets, *rows.sizes, 0)) == 0:
        return rows
    found.add("rows", "its .index.json holds an id that is no text, or a number below 0")
    return None


def _check_bytes(file: BinaryIO, size: int, rows: ShardRows, found: Findings) -> None:
    """Reports the samples whose bytes are not those that were written."""
    for name, offset, length, crc32 in zip(rows.ids, rows.offsets, rows.sizes, rows.crc32, strict=True):
        place = f"bytes {offset} to {offset + length}"
        if offset + length > size:
            found.add("truncated", f"the file ends at byte {size}", place=place, sample=name)
            continue
        file.seek(offset)
        if zlib.crc32(file.read(length)) != crc32:
            found.add("checksum", "its CRC-32 is not that of the index", place=place, sample=name)


def _read_records(file: BinaryIO, size: int, found: Findings) -> Iterator[Record]:
    """Yields the records of a tar up to where it cannot be read further."""
    return read_records(_safe_members(file, size, found), found.add)


def _safe_members(file: BinaryIO, size: int, found: Findings) -> Iterator[TarMember]:
    """Yields the members up to where the tar cannot be read further, without those that would leave the folder."""
    last = ""
    try:
        for member in walk(file, size):
            parts = re.split(r"[/\\]", member.name)
            if member.name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", member.name):
                found.add("path", "extracting it would write outside of the folder", place=member.place)
            else:
                last = member.name
                yield member
    except BadTar as error:
        detail = f"{error} (the last member is {last})" if last else str(error)
        found.add(error.kind, detail, place=f"byte {error.offset}")


def _check_samples(
    file: BinaryIO, size: int, job: ShardJob, rows: ShardRows | None, found: Findings
) -> Iterator[str]:
    """Checks every sample, and yields its name."""
    expected = {o: (i, s) for i, o, s in zip(rows.ids, rows.offsets, rows.sizes, strict=True)} if rows else {}
    for record in _read_records(file, size, found):
        name = check_sample(
            file, record, found, strict=job.listed is not None, images=job.images, limits=job.limits
        )
        listed = expected.pop(record.offset, None)
        if rows and listed != (name, record.size):
            seen = f"{listed[0]!r} of {listed[1]} bytes" if listed else "nothing"
            found.add("rows", f"the index says {seen}", place=f"byte {record.offset}", sample=name)
        yield name
    if not found.counts.keys() & {"truncated", "header"}:  # these explain missing samples
        missing = "the index lists it, but it does not exist"
        for offset, (name, _) in expected.items():
            found.add("rows", missing, place=f"byte {offset}", sample=name)


def _hash_ids(ids: Iterable[str]) -> np.ndarray:
    """Returns 64 bits of each id, so that a hundred million fit into memory."""
    digests = (hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in ids)
    return np.frombuffer(b"".join(digests), np.uint64)
