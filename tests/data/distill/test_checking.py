"""Verdicts on responses: which text is checked, and why a response is not kept."""

from __future__ import annotations

from data_pipeline.distill.checking import check_responses
from data_pipeline.distill.responses import TeacherResponse
from data_pipeline.verify.config import CheckerConfig
from data_pipeline.verify.pool import VerifyPool


def test_text_to_be_learned_is_checked():
    """Not the response around it, where other rules may find another answer."""
    whole = "<think>a</think><answer>4</answer>"
    cases = [
        (whole, "stop", ""),
        (whole, "length", "truncated"),
        (whole, "content_filter", "content_filter"),
        (
            "<think>a</think><answer>4</answer> no: <answer>5</answer>",
            "stop",
            "wrong",
        ),  # the rules take the first
        ("The answer is 4", "stop", "no_think"),
        ("<think>a</think>\\boxed{4}", "stop", "no_answer"),
        ("<think>a</think><answer>5</answer>", "stop", "wrong"),
        ("<think>a<|im_start|></think><answer>4</answer>", "stop", "text"),
        ("<think><image> \ud800</think><answer>5</answer>", "stop", "text"),
        (f"{whole}<|im_end|>", "stop", ""),  # which is not learned
    ]
    asked = [
        TeacherResponse(id=str(n), answer="4", response=text, finish_reason=end)
        for n, (text, end, _) in enumerate(cases)
    ]
    with VerifyPool(CheckerConfig(workers=1, mode="released")) as pool:
        checked = check_responses(pool, asked, "released")
    assert [found.reason for found in checked] == [reason for *_, reason in cases]
    assert [found.accuracy for found in checked] == [1, 0, 0, 0, 1, 1, 0, 1, 0, 1]
    assert "special token <|im_start|>" in checked[7].detail
    assert {found.checker for found in checked} == {"released"}
