"""Samples -> shards with their index; shards.py says what lies in such a folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_pipeline.config import ImageConfig
from data_pipeline.shard_index import INDEX, Shard, ShardIndex, rows_path
from data_pipeline.shards import to_fields
from data_pipeline.types import Sample

_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


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


def _remove_unfinished(folder: Path) -> None:
    """Delete what a killed write left, and nothing else."""
    for rows in folder.glob("shard-*.index.json"):  # written before its shard
        rows.with_name(rows.name.replace(".index.json", ".tar")).unlink(missing_ok=True)
        rows.unlink()
    for partial in folder.glob("*.partial"):
        partial.unlink()
    if strangers := sorted(path.name for path in folder.glob("*.tar")):
        raise ValueError(f"{folder} holds {strangers[0]!r}, which is not ours; choose an empty folder")


def _write_shard(samples: Sequence[Sample], path: Path, first_key: int) -> Shard:
    offsets = []
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, sample in enumerate(samples, first_key):
            offsets.append(tar.offset)
            names = [f"{number}.{_extension(image)}" for number, image in enumerate(sample.images)]
            _add_member(tar, f"{key:09d}.json", _json(to_fields(sample, names)))
            for name, image in zip(names, sample.images, strict=True):
                _add_member(tar, f"{key:09d}.{name}", image)
    with partial.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    rows = {
        "ids": [s.id for s in samples],
        "offsets": offsets,
        "tokens": [_estimate_tokens(s) for s in samples],
    }
    _write_atomically(rows_path(path), _json(rows))
    partial.replace(path)
    return Shard(file=path.name, count=len(samples), bytes=path.stat().st_size, sha256=sha256)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner, group and time stay 0, so that bytes depend on samples alone
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


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
