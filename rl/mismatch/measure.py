"""Measures how far engine and trainer are apart on the same tokens with the same weights (pure).

With d = log engine - log trainer of a token that the engine sampled: |d|, and Schulman's estimates of
KL(engine || trainer), k1 = mean d and k3 = mean(e^-d - 1 + d) (joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.types import TrainRollout

MAX_LOG_RATIO = 20.0
"""As in algorithms/kl.py: one token that is very far off leaves k3 finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """A response with logprobs of both."""

    rollout: TrainRollout
    trainer_logprobs: NDArray[np.float32]  # one per response token
    is_fresh: NDArray[np.bool_]  # tokens that the engine sampled from the weights that the trainer has

    @property
    def differences(self) -> NDArray[np.float64]:
        """Engine minus trainer, of all tokens."""
        assert self.rollout.logprobs is not None, "an engine sampled it"
        return self.rollout.logprobs.astype(np.float64) - self.trainer_logprobs

    @property
    def largest(self) -> float:
        """The largest |difference| of a fresh token; 0 without any. Not a number counts as infinite."""
        gaps = np.abs(self.differences[self.is_fresh])
        return float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0))


def measure_mismatch(compared: Sequence[Compared]) -> dict[str, float]:
    """Returns metrics over the fresh tokens, if any, and mismatch_stale: mean |d| of the others, if any.

    Of stale tokens d holds also what the policy has moved since.
    """
    d, stale = (
        np.concatenate([np.zeros(0), *(each.differences[each.is_fresh == fresh] for each in compared)])
        for fresh in (True, False)
    )
    others = {"mismatch_stale": float(np.abs(stale).mean())} if stale.size else {}
    if not d.size:
        return {"mismatch_tokens": 0.0, **others}
    gaps, bounded = np.abs(d), np.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    p50, p99 = np.quantile(gaps, (0.5, 0.99))
    return {
        "mismatch_tokens": float(d.size),
        "mismatch_mean": float(gaps.mean()),
        "mismatch_p50": float(p50),
        "mismatch_p99": float(p99),
        "mismatch_max": float(gaps.max()),
        "mismatch_k1": float(d.mean()),
        "mismatch_k3": float((np.expm1(-bounded) + bounded).mean()),
        **others,
    }
