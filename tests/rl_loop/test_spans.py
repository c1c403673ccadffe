"""Spans of versions against a token-by-token simulation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rl.rollout.spans import Cut, count_spans


@given(st.lists(st.one_of(st.integers(0, 3), st.just(None)), max_size=30), st.integers(1, 20))
def test_spans_are_those_of_the_tokens(events: list[int | None], length: int) -> None:
    """An event samples so many tokens, or updates the weights; a response of `length` tokens then is not counted."""
    sampled: list[int] = []
    cuts: list[Cut] = []
    version = 0
    for event in [*events, length]:
        if event is None:
            cuts.append((version, {7: len(sampled)} if len(sampled) < length else {}))
            version += 1
        else:
            sampled = [*sampled, *[version] * event][:length]
    spans = count_spans(7, length, cuts, version)
    assert [v for v, count in spans for _ in range(count)] == sampled
    assert all(count > 0 for _, count in spans)
