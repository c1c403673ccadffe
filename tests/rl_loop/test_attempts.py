"""pass@k and maj@k against all choices of k responses, and by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from rl.evaluation.attempts import find_majority, find_pass, list_attempts
from rl.types import AskedResponse


def answers(*extracted: str, right: str = "7") -> list[AskedResponse]:
    return [
        AskedResponse(id="q", rollout=number, extracted=text, accuracy=float(text.strip().lower() == right))
        for number, text in enumerate(extracted)
    ]


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_pass_is_the_mean_over_all_choices(right: int, k: int) -> None:
    records = answers(*["7"] * right, *["8"] * (5 - right))
    chosen = [max(record.accuracy for record in some) for some in combinations(records, k)]
    assert find_pass(records, k) == pytest.approx(np.mean(chosen))


def test_majority_is_of_the_first_k_and_ties_go_to_the_first() -> None:
    records = answers("8", "7", " 7", "", "8", "8")
    assert [find_majority(records, k) for k in (1, 2, 3, 4, 5, 6)] == [0, 0, 1, 1, 0, 0]
    assert find_majority(answers("", ""), 2) == 0
    assert find_majority(answers("Blue", "red", "blue ", right="blue"), 3) == 1


def test_question_that_could_not_be_asked_counts_as_wrong() -> None:
    refused = [replace(answers("")[0], fault="image: torn")]
    assert find_pass(refused, 4) == find_majority(refused, 4) == 0


def test_numbers_are_given_for_powers_of_two_and_n() -> None:
    assert [list_attempts(n) for n in (1, 2, 3, 8)] == [[], [2], [2, 3], [2, 4, 8]]
