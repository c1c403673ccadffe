"""Reading the answer from a response, by the strict rules."""

import pytest

from data_pipeline.verify.reading import read
from data_pipeline.verify.released import MIN_SOLUTION_LEN


@pytest.mark.parametrize(
    ("response", "extracted", "form"),
    [
        ("<think>r</think><answer>42</answer>\n", "42", 1.0),
        (" <think>r</think><answer>42</answer><|im_end|>\n", "42", 1.0),
        ("<think>a <answer>1</answer></think><answer>2</answer>", "2", 1.0),
        ("<think>a</think><answer>1</answer><answer>2</answer>", "2", 1.0),
        ("<answer>1</answer><think>b <answer>2</answer></think>", "1", 0.8),
        ("<think>a</think><answer>1</answer> but <answer>2", "", 0.0),
        ("<think>a <answer>1</answer>", "1", 0.0),
        ("<think>a <answer>1</answer> or", "", 0.0),
        ("</think><answer>4</answer>", "4", 0.0),
        (r"<think>\boxed{3}</think>\boxed{4}", "4", 1.0),
        (r"\boxed{3} then \boxed{4", "", 0.0),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", 1.0),
        ("so x = 42.", "42.", 0.0),
        ("so x = 42", "", 0.0),
        ("so x = 42\n", "42", 0.0),
        ("The answer is 42", "42", 0.0),
        ("7", "7", 0.0),
        ("", "", 0.0),
        ("</answer>", "", 0.0),
        ("<think>", "", 0.0),
    ],
)
def test_reads_the_last_answer_outside_of_thoughts(response, extracted, form):
    is_short = len(response) <= MIN_SOLUTION_LEN and form == 0.8
    assert read(response) == (extracted, 0.0 if is_short else form)
