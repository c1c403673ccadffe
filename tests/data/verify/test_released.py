"""The released mode against vectors of the published reward, row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.verify.check import check_answer, check_text, is_equal_math, needs_math
from data_pipeline.verify.released import extract_answer, match, read

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "released_reward.json").read_text())


@pytest.mark.parametrize(
    "row", GOLDEN["published"] + GOLDEN["further"], ids=lambda row: f"{row['response']}={row['answer']}"
)
def test_scores_as_the_published_reward(row):
    if not row["answer"]:  # the checker refuses what the published reward pays for
        extracted, form = read(row["response"])
        assert (match(extracted, "") != "none", form) == (row["accuracy"], row["format"])
        assert check_answer(row["response"], "", "released").decided_by == "no_reference"
        return
    verdict = check_answer(row["response"], row["answer"], "released")
    assert (verdict.accuracy, verdict.format) == (row["accuracy"], row["format"])
    assert (verdict.decided_by == "none") == (verdict.accuracy == 0)


def test_extracts_tag_then_box_then_final_number():
    box, number = r"\boxed{2}", "it is 3."
    assert extract_answer(f"<answer> 1. </answer>{box}\n{number}") == "1"
    assert extract_answer(f"{box}\n{number}") == "2"
    assert extract_answer(number) == "3"
    assert extract_answer("nothing") == ""


@pytest.mark.parametrize("letter", "ABCDEFGH")
def test_wrong_choice_is_decided_without_math_verify_and_as_it_would(letter):
    wrong = chr(ord(letter) + 1)
    assert not needs_math(check_text(f"<answer>{wrong}</answer>", letter, "released"))
    assert not is_equal_math(wrong, letter, "released")
