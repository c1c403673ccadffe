"""Configs of what a served model is asked: distillation, scores, the judge (standard library only)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from data_pipeline.config import WorkConfig

TEACHER_SYSTEM_PROMPT = (
    "You are a helpful assistant. When the user asks a question, your response must include two parts and "
    "nothing else: first, the reasoning process enclosed in <think>...</think> tags, then the final answer "
    "enclosed in <answer>...</answer> tags.Please provide a clear, concise response within <answer> </answer> "
    "tags that directly addresses the question."
)
"""The published teacher's system prompt: the recipe's, with "and nothing else"."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """An OpenAI-compatible server, and how patiently it is asked."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Where the server listens."""
    model: str = ""
    """Name the server knows the model by; empty takes the only one it serves."""
    api_key_env: str = ""
    """Environment variable that holds the key; empty sends none. The key itself is never written anywhere."""
    concurrency: int = 64
    """Requests under way at once."""
    timeout: float = 6_000.0
    """Seconds one request may take."""
    hedge_after: float = 0.0
    """Seconds after which a request is sent a second time, and the first answer taken; 0 never does."""
    retries: int = 3
    """Times a request is repeated after an error of the server's own, a timeout or garbage."""
    patience: float = 600.0
    """Seconds to wait for a server that is down or busy before giving up; the same command continues."""
    seed: int = 42
    """Seeds each answer, with the question's id and the answer's number, and the waits between attempts."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url={self.base_url!r} must begin with http:// or https://; servers of this kind "
                "usually end in /v1"
            )
        if "@" in self.base_url:
            raise ValueError(
                "base_url holds a name or key before its @, and configs are saved; use api_key_env"
            )
        if not 1 <= self.concurrency <= 1_000:
            raise ValueError(f"concurrency={self.concurrency} must be between 1 and 1000")
        if self.timeout <= 0 or min(self.hedge_after, self.retries, self.patience) < 0:
            raise ValueError(
                f"timeout={self.timeout:g} must be above 0, hedge_after={self.hedge_after:g}, "
                f"retries={self.retries} and patience={self.patience:g} 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ServerConfig):
    """A model that answers questions, k times each, and how its answers are checked."""

    k: int = 8
    """Answers to each question. Raising it later asks for the missing ones only."""
    temperature: float = 1.0
    """Of sampling."""
    top_p: float | None = None
    """Of sampling; left to the server where not given."""
    max_tokens: int = 16_384
    """Most tokens of an answer; one that reaches it is rejected as truncated."""
    system_prompt: str = TEACHER_SYSTEM_PROMPT
    """System prompt of the questions; empty asks without. It takes the place of the samples' own."""
    extra_body: str = ""
    """A JSON object of further fields of every request, such as {"top_k": 20}."""
    mode: Literal["strict", "released"] = "strict"
    """Rules of the answer checker."""
    checkers: int = 2
    """Processes that ask math-verify."""
    deadline: float = 5.0
    """Seconds that the check of one answer may take; past it the answer is counted as wrong."""
    judge: str = ""
    """URL of a server whose model judges the answers that the rules find wrong; empty asks none."""
    judge_model: str = ""
    """The judge's model; empty takes the only one that is served."""
    judge_key_env: str = ""
    """Environment variable that holds the judge's key."""
    max_bad_samples: float = 0.05
    """Answers that fail are counted by reason; past this many (from 1 on) or this share (below 1) it stops."""
    ask_failed_again: bool = False
    """Ask again what failed in an earlier run, of the server or of the judge (never what was answered)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("k", "max_tokens", "checkers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("temperature", "max_bad_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name):g} must be 0 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g} must be above 0 and at most 1")
        if self.deadline <= 0:
            raise ValueError(f"deadline={self.deadline:g} must be above 0 seconds")
        parse_extra_body(self.extra_body)
        _ = self.judge_server

    @property
    def judge_server(self) -> ServerConfig | None:
        return judge_server(self.judge, self.judge_model, self.judge_key_env)

    @property
    def checker(self) -> str:
        """Names what decides whether an answer is right; answers checked by another are checked again."""
        return f"{self.mode}+{self.judge_model or self.judge}" if self.judge else self.mode


@dataclass(frozen=True, kw_only=True)
class AskConfig(WorkConfig, TeacherConfig):
    """Questions from shards, k answers to each, checked."""

    shards: str
    """Folder of shards that holds the questions."""
    out: str
    """Folder that gets the answers; the same command continues there."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(AskConfig):
    """k answers of a teacher to each question, and those that are right as samples to learn from."""

    per_question: int = 8
    """Right answers to keep of each question, the first ones: 1, 2, 4 or 8 give the paper's x1 to x8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.per_question >= 1:
            raise ValueError(f"per_question={self.per_question} must be at least 1; the paper has 1, 2, 4, 8")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(AskConfig):
    """A number for each sample, by a served model."""

    kind: Literal["pass_rate", "perplexity"] = "pass_rate"
    """pass_rate: share of k answers that are right. perplexity: of the sample's own answer (vLLM's servers only)."""
    k: int = 4
    """Answers to each question, for pass_rate."""


def judge_server(url: str, model: str, api_key_env: str) -> ServerConfig | None:
    """How the judge is asked; None without one."""
    if not url:
        return None
    return ServerConfig(base_url=url, model=model, api_key_env=api_key_env, timeout=600.0)


def parse_extra_body(text: str) -> dict[str, object]:
    """The object that `extra_body` writes as JSON.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        body = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"extra_body={text!r} is not JSON ({error}); write '{{\"top_k\": 20}}'") from error
    if not isinstance(body, dict):
        raise ValueError(f"extra_body={text!r} must be a JSON object, such as '{{\"top_k\": 20}}'")
    if taken := {"messages", "model", "n", "stream"} & set(body):
        raise ValueError(
            f"extra_body sets {', '.join(sorted(taken))}, which is not for it to decide; leave it out"
        )
    return body
