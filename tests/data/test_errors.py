"""The error budget: counts and shares, merging, exempt reasons; and the words for a row that does not fit."""

from __future__ import annotations

import pickle

import pytest

from data_pipeline.errors import MIN_RECORDS, BadSample, ErrorBudget, column_error, describe


def budget(limit: int | float, **options: object) -> ErrorBudget:
    return ErrorBudget(limit=limit, option="max_bad_samples", fix="repair the rows", **options)  # pyright: ignore


def test_count_is_exceeded_by_one_more():
    found = budget(2)
    for number in range(2):
        found.add(f"row {number}", BadSample("image", "broken"))
    with pytest.raises(ValueError, match=r"3 samples are bad, more than max_bad_samples=2 allows") as error:
        found.add("row 2", BadSample("text", "empty"))
    assert "2 image, the first: row 0: image: broken" in str(error.value)
    assert str(error.value).endswith("repair the rows")


def test_zero_allows_none():
    with pytest.raises(ValueError, match="max_bad_samples=0"):
        budget(0).add("row 0", BadSample("image", "broken"))


def test_share_waits_for_enough_records_and_is_judged_at_the_end():
    found = budget(0.5)
    found.seen = MIN_RECORDS - 1
    for number in range(60):
        found.add(f"row {number}", BadSample("image", "broken"))
    with pytest.raises(ValueError, match="60 of 99 samples"):
        found.check(at_end=True)
    found.seen = 120
    found.check()
    with pytest.raises(ValueError, match="61 of 120 samples"):
        found.add("row 60", BadSample("image", "broken"))


@pytest.mark.parametrize(("limit", "allowed"), [(1, 1), (1.0, 1000), (0.0, 0)])
def test_type_of_the_limit_decides(limit: int | float, allowed: int):
    found = budget(limit)
    found.seen = 1000
    found.count("image", "row 0", allowed)
    found.check(at_end=True)
    if allowed < 1000:
        with pytest.raises(ValueError):
            found.add("row 1", BadSample("image", "broken"))


def test_unlimited_reasons_are_counted_only():
    found = budget(0, unlimited={"too_long"})
    found.add("row 0", BadSample("too_long", "9000 tokens"))
    assert found.counts == {"too_long": 1} and found.total == 1


def test_merge_adds_parts_and_keeps_the_first_case_across_processes():
    first, second = budget(9), budget(9)
    first.seen, second.seen = 10, 20
    first.add("row 3", BadSample("image", "broken"))
    second.add("row 4", BadSample("image", "torn"))
    second.add("row 5", BadSample("text", "empty"))
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.seen == 30
    assert first.counts == {"image": 2, "text": 1}
    assert first.cases().splitlines()[0].strip() == "2 image, the first: row 3: image: broken"


def test_bad_sample_keeps_its_reason_across_processes():
    error = pickle.loads(pickle.dumps(column_error("answer", "text", None, "fill the column")))
    assert error.reason == "schema"
    assert str(error) == "schema: answer: wanted text, saw nothing; fill the column"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        ({"a": 1, "b": 2}, "{a, b}"),
        ([], "a list of 0"),
        ([b"xy"], "a list of 1, first 2 bytes"),
        (7, "int 7"),
        ("x" * 99, "str 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."),
    ],
)
def test_describe(value: object, words: str):
    assert describe(value) == words


def test_share_above_one_is_refused():
    with pytest.raises(
        ValueError, match="max_bad_samples=100.0 is a share of the samples and must be at most 1"
    ):
        budget(100.0)
