"""Reward functions of any question: the parts of the checker's verdict, and a penalty of length."""

from __future__ import annotations

from rl.rewards.inputs import RewardInput


def accuracy(given: RewardInput) -> float:
    """Returns 1 where the answer checker, or the judge, finds the answer right, else 0."""
    return given.verdict.accuracy


def format(given: RewardInput) -> float:
    """Returns 1 for the form that was asked for, 0.8 for a solution without its tags, 0 for neither."""
    return given.verdict.format


def overlong(given: RewardInput, *, buffer: int) -> float:
    """Returns DAPO's soft penalty of length (arXiv 2503.14476, equation 13).

    With n tokens in the response, L = max_tokens and B = buffer: 0 for n <= L - B, (L - B - n) / B up to n = L, and -1
    beyond. A truncated response has L tokens and so gets -1.
    """
    excess = given.response_len - (given.max_tokens - buffer)
    return min(0.0, max(-1.0, -excess / buffer))
