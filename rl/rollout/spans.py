"""Which weights sampled each token of a response that was generated while the weights changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Cut = tuple[int, Mapping[int, int]]
"""A weight update while a prompt's responses were generated: the version before it, and the tokens that each response
which was not finished had then, by its number."""


def count_spans(
    number: int, num_tokens: int, cuts: Sequence[Cut], version: int
) -> tuple[tuple[int, int], ...]:
    """Returns Rollout.versions of response `number`, which ended with `num_tokens` tokens.

    Args:
        cuts: the updates since its prompt was taken, in order.
        version: of the weights since the last of them.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for before, lengths in cuts:
        end = lengths.get(number, num_tokens)  # one that is missing had ended before
        if end > start:
            spans.append((before, end - start))
        start = end
    if num_tokens > start:
        spans.append((version, num_tokens - start))
    return tuple(spans)
