"""Configs of a teacher, of distillation and of pass rates (standard library only)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from data_pipeline.config import WorkConfig, check_at_least
from data_pipeline.served.config import JudgeConfig, ServerConfig
from data_pipeline.verify.config import CheckerConfig

TEACHER_SYSTEM_PROMPT = (
    "You are a helpful assistant. When the user asks a question, your response must include two parts and "
    "nothing else: first, the reasoning process enclosed in <think>...</think> tags, then the final answer "
    "enclosed in <answer>...</answer> tags.Please provide a clear, concise response within <answer> </answer> "
    "tags that directly addresses the question."
)
"""The published teacher's system prompt: the recipe's, with "and nothing else"."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A model that answers questions, k times each, and how its responses are checked."""

    server: ServerConfig = field(default_factory=ServerConfig)
    k: int = 8
    """Responses to each question. Raising it later asks for the missing ones only."""
    temperature: float = 1.0
    """Of sampling."""
    top_p: float | None = None
    """Of sampling; left to the server where not given."""
    max_tokens: int = 16_384
    """Most tokens of a response; one that reaches this is rejected as truncated."""
    seed: int = 42
    """Seeds each response, with the question's id and the response's number."""
    system_prompt: str = TEACHER_SYSTEM_PROMPT
    """System prompt of the requests, instead of the samples' own; empty sends none."""
    extra_body: str = ""
    """A JSON object of further fields of every request, such as {"top_k": 20}."""
    checker: CheckerConfig = field(default_factory=CheckerConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    max_failures: int | float = 0.05
    """Requests that fail are counted by reason; above this number (50) or this share (0.05) the run stops."""
    ask_failed_again: bool = False
    """Repeat the requests to the teacher or the judge that failed in an earlier run."""

    def __post_init__(self) -> None:
        check_at_least(self, k=1, max_tokens=1, temperature=0, max_failures=0)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g} must be above 0 and at most 1")
        parse_extra_body(self.extra_body)

    @property
    def checked_by(self) -> str:
        """Names the checker and the judge; responses checked by others are checked again."""
        judge, mode = self.judge, self.checker.mode
        return f"{mode}+{judge.model or judge.base_url}" if judge.base_url else mode


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """k responses of a teacher to each question, checked."""

    shards: str
    """Folder of shards with the questions."""
    out: str
    """Folder that gets the responses; the same command continues there."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    work: WorkConfig = field(default_factory=WorkConfig)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """k responses of a teacher to each question, and the right ones as samples to learn from."""

    shards: str
    """Folder of shards with the questions."""
    out: str
    """Folder that gets the responses, and in shards/ the samples; the same command continues there."""
    per_question: int = 8
    """Right responses to keep of each question, the first ones: 1, 2, 4 or 8 give the paper's x1 to x8."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    work: WorkConfig = field(default_factory=WorkConfig)

    def __post_init__(self) -> None:
        check_at_least(self, per_question=1)

    @property
    def ask(self) -> AskConfig:
        return AskConfig(shards=self.shards, out=self.out, teacher=self.teacher, work=self.work)


def parse_extra_body(text: str) -> dict[str, object]:
    """Parses `extra_body`; raises ValueError if it is no JSON object, or sets a field that the client sets."""
    try:
        body = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"extra_body={text!r} is not JSON ({error}); write '{{\"top_k\": 20}}'") from error
    if not isinstance(body, dict):
        raise ValueError(f"extra_body={text!r} must be a JSON object, such as '{{\"top_k\": 20}}'")
    if taken := {"messages", "model", "n", "stream"} & set(body):
        raise ValueError(f"extra_body sets {', '.join(sorted(taken))}, as the client does; leave it out")
    return body
