"""What several responses to a question are worth together: pass@k and maj@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from rl.types import AskedResponse


def list_attempts(n: int) -> list[int]:
    """Returns the k for which numbers are given: 2, 4, 8, ... below n, and n; none for one response.

    >>> list_attempts(12)
    [2, 4, 8, 12]
    """
    return [] if n < 2 else [*(2**power for power in range(1, (n - 1).bit_length())), n]


def find_pass(records: Sequence[AskedResponse], k: int) -> float:
    """Returns the probability that one of k responses is right, when k of these are drawn.

    The unbiased estimate 1 - C(n - right, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374, equation 1).
    0 where the question could not be asked.
    """
    right = sum(record.accuracy >= 0.5 for record in records)
    return 1.0 - comb(len(records) - right, k) / comb(len(records), k) if len(records) >= k else 0.0


def find_majority(records: Sequence[AskedResponse], k: int) -> float:
    """Returns the accuracy of the most frequent answer of the first k responses; of equally frequent ones the first.

    Responses without an answer do not vote. 0 where none has one.
    """
    answers = {record.rollout: _normalise(record.extracted) for record in records[:k]}
    votes = Counter(answer for answer in answers.values() if answer)
    if not votes:
        return 0.0
    (winner, _), *_ = votes.most_common(1)
    return max(record.accuracy for record in records[:k] if answers[record.rollout] == winner)


def _normalise(answer: str) -> str:
    return " ".join(answer.casefold().split())
