"""A reward of one's own, as docs/rewards.md shows: shorter right answers earn more."""

from __future__ import annotations

from rl.rewards.inputs import RewardInput


def shortness(given: RewardInput) -> float:
    """Returns 1 for a right answer of no tokens, falling to 0 at the limit; a wrong one gets 0."""
    if not given.verdict.accuracy:
        return 0.0
    return 1 - given.response_len / given.max_tokens
