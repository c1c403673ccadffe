"""Choice letters of references and answers."""

import pytest

from data_pipeline.verify.choices import read_choice, read_reference, strip_letter


@pytest.mark.parametrize(
    ("text", "letters", "option"),
    [
        ("B", "B", ""),
        ("(b).", "B", ""),
        ("A, C", "AC", ""),
        ("BD", "BD", ""),
        ("B. 12 cm", "B", "12 cm"),
        ("(C) Mercury", "C", "Mercury"),
    ],
)
def test_references_that_are_choices(text, letters, option):
    assert read_reference(text) == (frozenset(letters), option)


@pytest.mark.parametrize("text", ["12", "DB", "Apple", "(a) 3 (b) 4", ""])
def test_references_that_are_no_choices(text):
    assert read_reference(text) is None


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("the answer is B", "B"),
        ("I choose option (c)", "C"),
        ("D. Both A and C", "D"),
        ("B is correct", "B"),
        ("A or B", ""),
        ("A. 5 or B. 6", ""),
        ("A triangle", ""),
        ("Apple", ""),
        ("the answer is not B", ""),
    ],
)
def test_letters_that_an_answer_names(text, letters):
    assert read_choice(text)[0] == frozenset(letters)


def test_letter_before_a_text_is_stripped():
    assert strip_letter("C. 12") == "12"
    assert strip_letter("c. 12") == "c. 12"
    assert strip_letter("12") == "12"
