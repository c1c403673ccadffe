"""Small files that are either whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Put `data` into `path` in one step; makes its folder.

    What a killed process left is written over by the next, unless `shared`: then several may write at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: object, *, shared: bool = False) -> None:
    """write_whole of `value` as JSON, readable and always the same for the same value."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n", shared=shared)


def read_json(path: Path) -> Any:
    """What write_json wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what was written there ({error}); delete it and run again"
        ) from error
