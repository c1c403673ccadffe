"""What is done to which part of a run, and when: drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

NEVER = -1.0

WAYS: tuple[tuple[str, str, float], ...] = (
    ("engine", "SIGKILL", 0.0),
    ("engine", "SIGSTOP", NEVER),
    ("engine", "SIGSTOP", 4.0),
    ("trainer", "SIGKILL", 0.0),
    ("trainer", "SIGSTOP", NEVER),
    ("trainer", "SIGSTOP", 4.0),
    ("verifier", "SIGKILL", 0.0),
    ("verifier", "SIGSTOP", NEVER),
    ("verifier", "SIGSTOP", 8.0),
    ("judge", "SIGKILL", 4.0),
    ("judge", "SIGSTOP", 4.0),
    ("driver", "SIGKILL", 0.0),
    ("driver", "SIGSTOP", NEVER),
    ("driver", "SIGSTOP", 8.0),
    ("raylet", "SIGKILL", 0.0),
)
"""Kind of process, signal, and the most seconds after which it is continued or, the judge's server, started again.
A judge that is stopped for good is its user's matter: its requests time out, and count as not judged."""
KINDS = ("engine", "trainer", "verifier", "judge", "driver")
"""Those that are struck unless others are asked for: Ray's own raylet is none of our processes."""

SPREAD = 0.8
"""Share of the steps over which the strikes are spread: some come late."""
BURST = 0.25
"""Share of the strikes that follow the one before without waiting for steps, so that they also hit starts."""
WAIT, BURST_WAIT = 4.0, 15.0
"""Most seconds from when a strike is due."""


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One signal to one process."""

    kind: str
    signal: str
    seconds: float  # until it is continued or started again; NEVER
    step: int  # not before so many steps are logged
    wait: float  # seconds after that and after the strike before


def plan_strikes(count: int, *, steps: int, seed: int, kinds: tuple[str, ...]) -> list[Strike]:
    """Returns `count` strikes spread over the steps of a run; every way of WAYS has its share of them."""
    draw = random.Random(seed)
    ways = [way for way in WAYS if way[0] in kinds]
    deck = [ways[i % len(ways)] for i in range(-(-count // len(ways)) * len(ways))]
    draw.shuffle(deck)
    strikes: list[Strike] = []
    for number, (kind, signal, most) in enumerate(deck[:count]):
        in_burst = bool(strikes) and draw.random() < BURST
        strikes.append(
            Strike(
                kind=kind,
                signal=signal,
                seconds=most if most <= 0 else round(draw.uniform(0.5, most), 2),
                step=strikes[-1].step if in_burst else int(SPREAD * number * steps / count),
                wait=round(draw.uniform(0, BURST_WAIT if in_burst else WAIT), 2),
            )
        )
    return strikes
