"""What both directions of the conversion share: room for the result, a progress bar, and a line at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

_OTHER_FILES = 2**26  # config, tokenizer, headers


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion did."""

    out: Path
    num_bytes: int  # of weights
    seconds: float
    cast: str  # what was rounded, if anything

    def __str__(self) -> str:
        size, speed = self.num_bytes / 1e9, self.num_bytes / 1e9 / self.seconds
        return f"{size:.3g} GB of weights in {self.out}, {self.seconds:.1f} s, {speed:.2g} GB/s{self.cast}"


class Stopwatch:
    """Measures the seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def finish(
        self, out: Path, num_bytes: int, *, read: Iterable[torch.dtype], written: torch.dtype
    ) -> Converted:
        """Returns what was done by now: weights of the dtypes `read` were written in one."""
        others = sorted({str(dtype).removeprefix("torch.") for dtype in read if dtype != written})
        cast = f"; cast from {', '.join(others)} to config.json's {str(written)[6:]}" if others else ""
        seconds = time.monotonic() - self._start
        return Converted(out=out, num_bytes=num_bytes, seconds=seconds, cast=cast)


def check_room(out: Path, num_bytes: int) -> None:
    """Raises OSError if so many bytes do not fit beside what is on the disk of `out`."""
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    free, wanted = shutil.disk_usage(existing).free, num_bytes + _OTHER_FILES
    if free < wanted:
        raise OSError(
            f"{out} takes {wanted / 1e9:.3g} GB, and {existing} has {free / 1e9:.3g} GB free; free space, or choose "
            "another folder"
        )


@contextmanager
def show_progress(out: Path, total: int) -> Iterator[tqdm]:
    """Yields a bar over bytes, shown on a terminal; an OSError that names no file, as of a full disk, names `out`."""
    bar = tqdm(
        total=total,
        desc=f"write {out.name}",
        unit="B",
        unit_scale=True,
        disable=None,
        delay=1,
        dynamic_ncols=True,
    )
    try:
        with bar:
            yield bar
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(out)
        raise
