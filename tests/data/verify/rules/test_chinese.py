"""Chinese numerals and the words around Chinese answers."""

from __future__ import annotations

import pytest

from data_pipeline.verify.rules.chinese import read_numeral, rewrite_chinese


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("十", "10"),
        ("十二", "12"),
        ("二十", "20"),
        ("一百零五", "105"),
        ("三千二百", "3200"),
        ("三万", "30000"),
        ("一亿", "100000000"),
        ("二〇二四", "2024"),
        ("17", "17"),
    ],
)
def test_numerals_are_read(text: str, number: str):
    assert read_numeral(text) == number


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("故选:C", "C"),
        ("答案是12", "12"),
        ("三分之二", "2/3"),
        ("百分之二十", "20%"),
        ("负三", "-3"),
        ("三点一四", "3.14"),
        ("十二厘米", "12厘米"),
        ("一样", "一样"),  # the same: no number with a unit
    ],
)
def test_answers_are_written_as_other_rules_read_them(text: str, written: str):
    assert rewrite_chinese(text) == written
