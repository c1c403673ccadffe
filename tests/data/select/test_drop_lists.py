"""Drop lists: rows are dropped by their number, and a shard that has changed is refused."""

from __future__ import annotations

import pytest

from data_pipeline.select.drop_lists import DropList, drop_listed
from data_pipeline.types import Sample
from tests.helpers.alike import ask


def test_of_samples_with_the_same_id_the_listed_row_is_dropped():
    texts = ("Who?", "When?", "Where?", "Why?")
    samples = [ask("other" if text == "When?" else "same", text) for text in texts]
    listed = DropList(readable=4, rows={2: ("same", "contamination")})
    dropped: list[tuple[Sample, str]] = []
    kept = list(drop_listed(samples, listed, lambda sample, reason: dropped.append((sample, reason))))
    assert kept == [*samples[:2], samples[3]] and dropped == [(samples[2], "contamination")]
    for others in (samples[:3], samples[1:]):
        with pytest.raises(ValueError, match="has changed since its duplicates were listed"):
            list(drop_listed(others, listed, lambda sample, reason: None))
