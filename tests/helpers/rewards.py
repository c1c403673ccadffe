"""Inputs of reward functions."""

from __future__ import annotations

from dataclasses import replace

from data_pipeline.verify.check import check_answer
from rl.rewards.inputs import RewardInput
from tests.helpers.groups import make_prompt


def make_input(
    response: str = "<think>a</think><answer>7</answer>",
    answer: str = "7",
    *,
    response_len: int = 5,
    max_tokens: int = 100,
) -> RewardInput:
    """Returns a response as the scorer gives it to functions, with the checker's verdict."""
    return RewardInput(
        prompt=replace(make_prompt(), answer=answer),
        response=response,
        response_len=response_len,
        finish_reason="length" if response_len == max_tokens else "stop",
        verdict=check_answer(response, answer),
        max_tokens=max_tokens,
    )
