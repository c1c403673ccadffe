"""The record that reward functions take: one response, what was asked, and the answer checker's verdict on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from data_pipeline.verify.check import Verdict
from rl.types import Prompt


@dataclass(frozen=True, kw_only=True)
class RewardInput:
    """One response to a prompt."""

    prompt: Prompt  # question, answer (the reference), source, kind
    response: str  # decoded, without special tokens
    response_len: int  # tokens
    finish_reason: str  # stop, or length: cut off at max_tokens
    verdict: Verdict  # accuracy, format, extracted (the answer as the checker read it), decided_by
    max_tokens: int  # most tokens that the response could have


RewardFunction: TypeAlias = Callable[[RewardInput], float]
