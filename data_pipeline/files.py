"""Files that are either whole or absent, JSON without NaN, and output folders that belong to one configuration."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"
"""Suffix of a file that is being written; one that a killed process left is overwritten or removed."""
_OLD = ".old"  # of a folder that is being removed


@contextmanager
def atomic_writer(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Opens `path` for writing; it appears, synced to disk, when the block ends without an error.

    Creates the folder. With `shared`, several processes may write the same path at once: the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}" if shared else f"{path.name}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say which
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder to fill; it takes the place of `folder` when the block ends without an error."""
    partial = partial_folder(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    publish_folder(folder)


def publish_folder(folder: Path) -> None:
    """Gives `partial_folder(folder)` its name, in place of an older one, and syncs that to the disk."""
    if os.path.lexists(folder):
        remove_folder(folder)
    partial_folder(folder).replace(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def partial_folder(folder: Path) -> Path:
    """Returns where atomic_folder keeps the contents of `folder` until they are complete."""
    return folder.with_name(f".{folder.name}{PARTIAL}")


def remove_leftovers(parent: Path, names: str) -> None:
    """Removes what killed writers left in `parent` of the atomic folders whose names match the pattern `names`."""
    for suffix in (PARTIAL, _OLD):
        for left in parent.glob(f".{names}{suffix}"):
            _remove(left, ignore_errors=True)


def to_json(
    value: object,
    *,
    indent: int | None = None,
    ascii: bool = True,
    sort_keys: bool = False,
    compact: bool = False,
) -> str:
    """Returns `value` as JSON text; equal values give equal text.

    Args:
        ascii: escape all other characters, also half a surrogate pair, which UTF-8 cannot hold.

    Raises:
        ValueError: it holds NaN or infinity, which JSON does not have.
    """
    return json.dumps(
        value,
        allow_nan=False,
        indent=indent,
        ensure_ascii=ascii,
        sort_keys=sort_keys,
        separators=(",", ":") if compact else None,
    )


def without_nan(value: Any) -> Any:
    """Returns the value with None in place of every NaN and infinity, for numbers that may have become one."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: object, *, shared: bool = False) -> None:
    """Writes `value` as indented JSON, atomically; raises ValueError as to_json()."""
    data = to_json(value, indent=1, ascii=False).encode() + b"\n"
    with atomic_writer(path, shared=shared) as file:
        file.write(data)


def parse_json(text: str | bytes, *, read_float: Callable[[str], float] = float) -> Any:
    """Returns the value of JSON that others wrote.

    Raises:
        ValueError: it is not JSON, is nested too deeply, holds NaN or infinity, or names something twice.
    """
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=lambda number: _finite(read_float(number), number),
            object_pairs_hook=_without_repeats,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which JSON does not have; write null, or leave the field out")


def _finite(number: float, text: str) -> float:
    if not math.isfinite(number):
        raise ValueError(f"it holds {text[:40]}, which is too large a number; write it as a text")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in fields if names.count(name) > 1)
        raise ValueError(f"an object has the name {twice!r} twice; keep one of them")
    return fields


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file of ours; raises ValueError if it holds something else."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def claim_folder(
    folder: Path,
    manifest: str,
    wanted: Mapping[str, object],
    *,
    replace: bool | Sequence[str] = False,
    adopt: bool = False,
    shared: bool = False,
) -> None:
    """Makes `folder` the output of the settings `wanted`, recorded in `folder`/`manifest`; creates both.

    Args:
        wanted: what decides the output, as JSON holds it: digests of the inputs and the settings.
        replace: remove what other settings left there, instead of refusing it; as names, only if no others differ.
        adopt: files without a manifest belong to these settings, instead of being refused.
        shared: several processes may claim the folder at once.

    Raises:
        ValueError: it holds the output of other settings, or files without a manifest.
    """
    path, wanted = folder / manifest, json.loads(to_json(wanted))
    has_files = any(not left.name.endswith(PARTIAL) for left in folder.glob("*"))
    found = read_json(path) if path.exists() else None  # read last: another process may claim meanwhile
    if found == wanted:
        return
    if found is None and has_files and not adopt:
        raise ValueError(f"{folder} is not empty and has no {manifest}; choose another folder, or delete it")
    if found is not None and replace is not True:
        check_settings(folder, found | {key: wanted[key] for key in replace or () if key in found}, wanted)
    if found is not None and replace:
        remove_folder(folder)
    write_json(path, wanted, shared=shared)


def check_settings(folder: Path, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Raises ValueError if `folder` was made with other settings, naming each with both values; None is as missing."""
    if names := sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)):
        changed = "; ".join(f"{name} was {found.get(name)!r}, is {wanted.get(name)!r}" for name in names)
        raise ValueError(
            f"{folder} was made with other settings: {changed}; set them back, choose another folder, or delete it"
        )


def remove_folder(folder: Path) -> None:
    """Removes a folder in one step, so that a kill leaves all of it or nothing; of a link, what it names stays."""
    old = folder.with_name(f".{folder.name}{_OLD}")  # hidden: `shards.old` may be a folder of the user's
    _remove(old, ignore_errors=True)  # of a removal that was killed
    folder.replace(old)
    _remove(old)


def _remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Removes a folder, or the file or link that a user has put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=ignore_errors)
