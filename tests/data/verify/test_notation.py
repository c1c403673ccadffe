"""Normalising notation, and splitting answers that are lists."""

import pytest

from data_pipeline.verify.notation import (
    normalise,
    remove_spaces,
    split_list,
    strip_brackets,
    to_latex,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (r"$\dfrac12\,\text{cm}$", r"\frac{1}{2} cm"),
        (r"\boxed{\mathbf{B}}", "B"),
        ("**42**.", "42"),
        ("（3，4）", "(3, 4)"),
        ("−7", "-7"),
        (r"60^{\circ}", "60 degrees"),
        ("60°", "60 degrees"),
        (r"45\%", "45%"),
        ("$5", "$5"),
        (r"\$5", "$5"),
        ("$$", ""),
        ("5!", "5!"),
        ("It is 5 !", "It is 5"),
        (r"x \leqslant 3", r"x \le 3"),
        ("2sqrt(x+1)", r"2\sqrt{x+1}"),
        (r"\boxed{\box\boxed{5}", r"\box5"),  # hostile nesting ends
    ],
)
def test_one_notation_for_equal_answers(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "items", "is_ordered"),
    [
        ("(3, 4)", ("3", "4"), True),
        (r"\{3, 4\}", ("3", "4"), False),
        ("3, 4", ("3", "4"), True),
        ("3 or 4", ("3", "4"), False),
        (r"\pm 3", ("3", "-3"), False),
        (r"1 \pm x", ("1 + x", "1 -x"), False),
        ("(a) 3 (b) 4", ("3", "4"), True),
        ("f(1, 2), 3", ("f(1, 2)", "3"), True),
    ],
)
def test_lists_are_split_outside_of_brackets(text, items, is_ordered):
    found = split_list(text)
    assert found and (found.items, found.is_ordered) == (items, is_ordered)


@pytest.mark.parametrize("text", ["5", "f(1, 2)", "(x + 1)", r"\begin{matrix} 1, 2 \end{matrix}", ""])
def test_single_answers_are_no_lists(text):
    assert split_list(text) is None


def test_brackets_around_one_item_are_stripped():
    assert strip_brackets("((x + 1))") == "x + 1"
    assert strip_brackets("(3, 4)") == "(3, 4)"
    assert strip_brackets("(x)(y)") == "(x)(y)"


def test_latex_for_the_parser():
    assert to_latex(r"2\frac{1}{3}x") == r"(2+\frac{1}{3})x"
    assert to_latex("50%") == r"50\%"
    assert to_latex(r"\sin 30 degrees") == r"\sin (30\cdot\frac{\pi}{180})"


def test_spaces_between_digits_stay():
    assert remove_spaces("2 1/2 x + 1") == "2 1/2x+1"
