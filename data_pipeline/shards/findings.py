"""What `omr data validate` finds: problems with their places, counted by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

KEPT = 100
"""Problems of a kind that are kept of each shard; all are counted."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something broken, and where."""

    kind: str
    shard: str = ""
    place: str = ""  # byte, member
    sample: str = ""  # its id, or its key where the id cannot be read
    detail: str


@dataclass(kw_only=True)
class Findings:
    """What was found in a shard."""

    shard: str
    samples: int = 0
    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # problems by kind
    problems: list[Problem] = field(default_factory=list)  # the first of each kind
    id_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # [samples], in order

    def add(self, kind: str, detail: str, *, place: str = "", sample: str = "") -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= KEPT:
            texts = {"place": place, "sample": sample, "detail": detail}
            self.problems.append(
                Problem(
                    kind=kind, shard=self.shard, **{name: printable(text) for name, text in texts.items()}
                )
            )


def printable(text: str) -> str:
    """Short, and without anything that a terminal would act on."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:300])
