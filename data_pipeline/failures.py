"""How the ranks of a run failed, and which of their failures was the cause.

When one rank ends, the others soon fail as well, with errors about closed connections. Reported is the cause alone: in
one line where a user can act on it, else with its traceback.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

R = TypeVar("R")

GRACE_SECONDS = 3.0
"""After a rank failed, the others get this long to say why: theirs may be the cause."""


class RankError(RuntimeError):
    """A rank raised, was killed or ran out of time; the message is the cause."""


class RankMistake(RankError, ValueError):
    """A rank raised ValueError; the message is that of the error."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Records what ended one rank."""

    rank: str  # its name, such as "rank 1"
    time: int  # nanoseconds since 1970
    mistake: str = ""  # the message of a ValueError
    fault: str = ""  # the message of an OSError, such as a full disk
    death: str = ""  # how it ended without an exception: "by SIGKILL"
    traceback: str = ""

    @property
    def message(self) -> str:
        if self.death:
            return f"{self.rank} was killed {self.death}"
        if self.mistake or self.fault:
            return self.mistake or f"{self.rank}: {self.fault}"
        return f"{self.rank} failed:\n{self.traceback}"


def call_or_fail(rank: str, fn: Callable[..., R], *args: object) -> R | Failure:
    """Returns fn(*args), or what it raised, in a form that can be sent to another process."""
    try:
        return fn(*args)
    except Exception as error:
        return describe_failure(rank, error)


def describe_failure(rank: str, error: BaseException) -> Failure:
    """Returns what a rank raised, in a form that can be sent to another process."""
    return Failure(
        rank=rank,
        time=time.time_ns(),
        mistake=str(error) if isinstance(error, ValueError) else "",
        fault=str(error) if isinstance(error, OSError) else "",
        traceback="".join(traceback.format_exception(error)),
    )


def build_rank_error(failures: Sequence[Failure]) -> RankError:
    """Returns the error that says what the cause of these failures was."""
    cause = find_cause(failures)
    return RankMistake(cause.message) if cause.mistake else RankError(cause.message)


def find_cause(failures: Sequence[Failure]) -> Failure:
    """Returns the failure that caused the others.

    It is a death, except by SIGABRT, with which NCCL ends a rank whose peer is gone; else a mistake of the user; else
    what was raised first.
    """

    def order(failure: Failure) -> tuple[int, int]:
        if failure.death:
            return (3 if "SIGABRT" in failure.death else 0), failure.time
        return (1 if failure.mistake else 2), failure.time

    return min(failures, key=order)
