"""Text tables: columns are aligned and nothing trails."""

from __future__ import annotations

from data_pipeline.tables import text_table


def test_columns_are_aligned():
    assert text_table(["source", "kept"], [["mmk12", 120], ["tqa", 7]]).splitlines() == [
        "source  kept",
        "mmk12    120",
        "tqa        7",
    ]


def test_left_columns_have_no_trailing_spaces():
    assert text_table(["a", "b"], [["x", "long text"], ["y", "z"]], left=2).splitlines() == [
        "a  b",
        "x  long text",
        "y  z",
    ]


def test_only_a_head():
    assert text_table(["a", "b"], []) == "a  b"
