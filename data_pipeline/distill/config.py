"""Configs of teachers, of distillation and of pass rates (standard library only)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

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
Keep = Literal["first", "likeliest_answer", "likeliest"]
NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A model that answers questions, k times each, and how its responses are checked."""

    name: str = ""
    """Its name among several teachers: of its folder, in its responses and in the ids of its samples."""
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
    logprobs: bool = False
    """Ask for the tokens' log-probabilities, and note their mean over a response, and over its answer."""
    price_in: float = 0.0
    """Price of a million tokens of prompts, in any currency; with price_out it gives the cost, 0 is unknown."""
    price_out: float = 0.0
    """Price of a million tokens of responses."""
    checker: CheckerConfig = field(default_factory=CheckerConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    max_failures: int | float = 0.05
    """Requests that fail are counted by reason; above this number (50) or this share (0.05) the run stops."""
    ask_failed_again: bool = False
    """Repeat the requests to the teacher or the judge that failed in an earlier run."""

    def __post_init__(self) -> None:
        check_at_least(self, k=1, max_tokens=1, temperature=0, max_failures=0, price_in=0, price_out=0)
        if self.name and not NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} of a teacher must be of letters, digits, - and _")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g} must be above 0 and at most 1")
        parse_extra_body(self.extra_body)

    @property
    def checked_by(self) -> str:
        """Names the checker and the judge; responses checked by others are checked again."""
        judge, mode = self.judge, self.checker.mode
        return f"{mode}+{judge.model or judge.base_url}" if judge.base_url else mode

    def cost(self, prompt_len: int, response_len: int) -> float:
        """Returns the price of so many tokens; 0 where it is unknown."""
        return (self.price_in * prompt_len + self.price_out * response_len) / 1e6


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
class AssignConfig:
    """Which of several teachers is asked a question."""

    way: Literal["all", "shares", "by_pass_rate", "cascade"] = "all"
    """Every teacher; one, drawn by shares or by the question's pass rate; or one after the other until one is right."""
    shares: tuple[float, ...] = ()
    """With way=shares a weight per teacher; by default all are equal."""
    thresholds: tuple[float, ...] = ()
    """With way=by_pass_rate the least pass rate of each teacher but the last, falling: the first gets easy ones."""
    max_pass_rate: float | None = None
    """Ask no teacher what the student answers right more often than this; 0 leaves what it never does."""

    def __post_init__(self) -> None:
        if self.max_pass_rate is not None and not 0 <= self.max_pass_rate <= 1:
            raise ValueError(f"assign.max_pass_rate={self.max_pass_rate:g} must be a share from 0 to 1")
        for field_, way in (("shares", "shares"), ("thresholds", "by_pass_rate")):
            if getattr(self, field_) and self.way != way:
                raise ValueError(f"assign.{field_} is set, but assign.way={self.way}; it needs {way}")

    @property
    def needs_pass_rates(self) -> bool:
        return self.way == "by_pass_rate" or self.max_pass_rate is not None

    def check(self, teachers: Sequence[TeacherConfig]) -> None:
        """Raises ValueError if these teachers cannot be told apart, or shares or thresholds are not theirs."""
        names, count = [teacher.name for teacher in teachers], len(teachers)
        if not teachers or (count > 1 and not all(names)) or len(set(names)) < count:
            raise ValueError(
                f"teachers have the names {names}; there must be at least one, and each of several needs another name: "
                "set --teachers.0.name, --teachers.1.name, ..."
            )
        shares, limits = self.shares, self.thresholds
        if shares and (len(shares) != count or min(shares) < 0 or not sum(shares)):
            raise ValueError(
                f"assign.shares={shares} must be {count} weights from 0 on, one of them above 0: one for each teacher"
            )
        falling = list(limits) == sorted(set(limits), reverse=True) and all(
            0 < limit <= 1 for limit in limits
        )
        if self.way == "by_pass_rate" and (len(limits) != count - 1 or not falling):
            raise ValueError(
                f"assign.thresholds={limits} must be {count - 1} falling pass rates above 0, one for each teacher but "
                "the last"
            )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """k responses of teachers to each question, and the right ones as samples to learn from."""

    shards: str
    """Folder of shards with the questions."""
    out: str
    """Folder that gets the responses, and in shards/ the samples; the same command continues there."""
    per_question: int = 8
    """Right responses to keep of each question: 1, 2, 4 or 8 give the paper's x1 to x8."""
    keep: Keep = "first"
    """Which ones: the first, those with the likeliest answer, or the likeliest as a whole; see `teachers.logprobs`."""
    teachers: tuple[TeacherConfig, ...] = field(default_factory=lambda: (TeacherConfig(),))
    """The models that answer, in the order of a cascade."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    scores: tuple[str, ...] = ()
    """scores.jsonl files that `omr data score` wrote of these questions, where `assign` needs pass rates."""
    work: WorkConfig = field(default_factory=WorkConfig)

    def __post_init__(self) -> None:
        check_at_least(self, per_question=1)
        self.assign.check(self.teachers)

    @property
    def asks(self) -> tuple[AskConfig, ...]:
        """What each teacher is asked: one with a name has a folder of its own in `out`/teachers."""
        return tuple(
            AskConfig(
                shards=self.shards,
                out=str(Path(self.out) / "teachers" / teacher.name) if teacher.name else self.out,
                teacher=replace(teacher, logprobs=teacher.logprobs or self.keep != "first"),
                work=self.work,
            )
            for teacher in self.teachers
        )


def parse_extra_body(text: str) -> dict[str, object]:
    """Parses `extra_body`; raises ValueError if it is no JSON object, or sets a field that the client sets."""
    try:
        body = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"extra_body={text!r} is not JSON ({error}); write '{{\"top_k\": 20}}'") from error
    if not isinstance(body, dict):
        raise ValueError(f"extra_body={text!r} must be a JSON object, such as '{{\"top_k\": 20}}'")
    if taken := {"logprobs", "messages", "model", "n", "stream"} & set(body):
        raise ValueError(f"extra_body sets {', '.join(sorted(taken))}, as the client does; leave it out")
    return body
