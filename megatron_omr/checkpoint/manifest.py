"""state.json of a checkpoint: what it is, and the size and sum of every other file. Imports no torch.

It is written last, and holds a sum of itself: what it lists is all there, or the checkpoint is damaged.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import xxhash

from data_pipeline.files import parse_json, to_json, write_json

NAME = "state.json"
_BLOCK = 2**22
_OTHER = "take another step-* folder"


class FileSum(NamedTuple):
    """Size and sum of a file."""

    num_bytes: int
    sum: str  # xxh3_64, as hex digits


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checkpoint's state.json."""

    step: int
    world_size: int
    fields: Mapping[str, Any]  # everything but the files: also step and world_size
    files: Mapping[str, FileSum]


def sum_file(path: Path) -> FileSum:
    """Returns size and sum of a file, which is read block by block."""
    total, count, block = xxhash.xxh3_64(), 0, bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            total.update(memoryview(block)[:size])
            count += size
    return FileSum(num_bytes=count, sum=total.hexdigest())


def write_manifest(folder: Path, fields: Mapping[str, Any], files: Mapping[str, FileSum]) -> None:
    """Writes state.json, atomically and synced.

    Args:
        fields: what the checkpoint is, as JSON: at least step and world_size.
        files: by path relative to `folder`.
    """
    content = {**fields, "files": {name: list(files[name]) for name in sorted(files)}}
    content = parse_json(
        to_json(content)
    )  # as it will be read: JSON's names are texts, in the order of texts
    write_json(folder / NAME, content | {"sum": _sum_of(content)})


def read_manifest(folder: Path) -> Manifest:
    """Returns state.json of a checkpoint.

    Raises:
        ValueError: it is missing or damaged, or an earlier version wrote it.
    """
    path = folder / NAME
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{folder} has no {NAME} that can be read ({error.strerror}): not a complete checkpoint; {_OTHER}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {_OTHER}") from error
    if not isinstance(content, dict) or "files" not in content:
        raise ValueError(f"{path} lists no files: an earlier version wrote it, or something else; {_OTHER}")
    wanted, seen = content.pop("sum", None), _sum_of(content)
    if seen != wanted:
        raise ValueError(f"{path} is damaged: its sum is {seen}, written was {wanted}; {_OTHER}")
    try:
        files = {_inside(name): _file_sum(*entry) for name, entry in content.pop("files").items()}
        step, world_size = int(content["step"]), int(content["world_size"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not of a checkpoint ({error!r}); {_OTHER}") from error
    return Manifest(step=step, world_size=world_size, fields=content, files=files)


def check_files(folder: Path, manifest: Manifest, *, part: tuple[int, int] = (0, 1)) -> None:
    """Compares the files of a checkpoint with its manifest. Files that it does not list are ignored.

    Args:
        part: (rank, world_size): check only this rank's share of the bytes.

    Raises:
        ValueError: one is missing, has another size or another sum; the message names it.
    """
    for name in _deal(manifest.files, *part):
        wanted, path = manifest.files[name], folder / name
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for its writer
                raise ValueError(f"{path} is damaged: it is no file any more; {_OTHER}")
            if found.st_size != wanted.num_bytes:
                raise ValueError(
                    f"{path} is damaged: it has {found.st_size} bytes, written were {wanted.num_bytes}; {_OTHER}"
                )
            seen = sum_file(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}); {_OTHER}") from error
        if seen != wanted:
            raise ValueError(f"{path} is damaged: its sum is {seen.sum}, written was {wanted.sum}; {_OTHER}")


def _deal(files: Mapping[str, FileSum], rank: int, world_size: int) -> list[str]:
    """Returns this rank's files: the largest first, each to the rank that has the fewest bytes."""
    shares: list[list[str]] = [[] for _ in range(world_size)]
    sizes = [0] * world_size
    for name in sorted(files, key=lambda name: (-files[name].num_bytes, name)):
        smallest = sizes.index(min(sizes))
        shares[smallest].append(name)
        sizes[smallest] += files[name].num_bytes
    return shares[rank]


def _sum_of(content: Mapping[str, Any]) -> str:
    text = to_json(content, sort_keys=True, compact=True)
    return xxhash.xxh3_64_hexdigest(text.encode())


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise LookupError(f"{name!r} lies outside the folder")
    return name


def _file_sum(num_bytes: object, sum: object) -> FileSum:
    if not isinstance(num_bytes, int) or not isinstance(sum, str):
        raise TypeError(f"{num_bytes!r} and {sum!r} are no size and sum")
    return FileSum(num_bytes=num_bytes, sum=sum)
