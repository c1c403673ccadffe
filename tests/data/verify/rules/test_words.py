"""Words around a value are removed, and words are compared."""

from __future__ import annotations

import pytest

from data_pipeline.verify.rules.words import is_same_word, is_words, strip_qualifiers, strip_sentence


def test_sentence_around_an_answer_is_removed():
    assert strip_sentence("The area is 5 because 2 + 3 = 5") == "5"
    assert strip_sentence("So, the answer is 7") == "7"
    assert strip_sentence("It is not 5") == "It is not 5"
    assert strip_sentence("C. 12") == "12"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("about 5", "5"),
        ("≈ 5", "5"),
        (r"x \in [0, 1]", "[0, 1]"),
        ("P(1, 2)", "(1, 2)"),
        ("5th", "5"),
        ("Five", "5"),
        ("twelve", "12"),
        ("triangle", "triangle"),
    ],
)
def test_qualifiers_are_removed(text: str, value: str):
    assert strip_qualifiers(text) == value


def test_words_are_told_from_values():
    assert is_words("triangle") and is_words("right-angled triangle")
    assert not is_words("x") and not is_words("5 cm") and not is_words("red and blue")


def test_words_are_equal_without_case_hyphen_and_article():
    assert is_same_word("The Right-angled triangle", "right angled triangle")
    assert is_same_word("Yes, it is", "yes")
    assert not is_same_word("Yes, no", "yes") and not is_same_word("no", "yes")
    assert not is_same_word("a square", "a circle")
