"""Scores of samples by a served model: pass rate, and perplexity. They go to OUT/scores.jsonl, a line per sample."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from data_pipeline.distill.answers import Answer, Yield, pass_rates, read_answers
from data_pipeline.distill.asking import ask_all, ask_shards
from data_pipeline.distill.config import ScoreConfig
from data_pipeline.distill.distill import distill_shards
from data_pipeline.distill.teacher import chat_messages
from data_pipeline.errors import BadSample
from data_pipeline.served.client import ChatClient
from data_pipeline.shards.index import ShardIndex
from data_pipeline.types import Sample

SCORES = "scores.jsonl"


def score(config: ScoreConfig) -> dict[str, Yield]:
    """score_shards of all shards, on the executor that `config` names."""
    return ask_all(score_shards, config)


def score_shards(config: ScoreConfig, numbers: Sequence[int]) -> dict[str, Yield]:
    """Ask what `config.kind` needs about the samples of these shards; returns what came of it by source.

    Raises:
        ValueError: as distill_shards.
    """
    if config.kind == "pass_rate":
        return distill_shards(config, numbers)
    return ask_shards(replace(config, k=1), numbers, ask_perplexity, kind="perplexity")


def finish_scores(config: ScoreConfig) -> Path:
    """Once all shards are asked: write scores.jsonl, lines of id and pass_rate or perplexity, in the shards' order.

    Samples about which nothing came have no line.

    Raises:
        ValueError: not all shards were asked.
    """
    path = Path(config.out) / SCORES
    partial = path.with_name(f"{SCORES}.partial")
    with partial.open("w") as file:
        index = ShardIndex.load(config.shards)
        for number in range(len(index.shards)):
            for _, answers in groupby(read_answers(config.out, index, number), lambda answer: answer.id):
                file.writelines(json.dumps(row) + "\n" for row in _rows(config.kind, list(answers)))
    partial.replace(path)
    return path


def read_scores(path: str | Path) -> dict[str, dict[str, float]]:
    """The scores of each sample by id, from a file that finish_scores wrote."""
    with Path(path).open() as lines:
        rows = map(json.loads, lines)
        return {row.pop("id"): row for row in rows}


def with_scores(
    samples: Iterable[Sample],
    scores: Mapping[str, Mapping[str, float]],
    names: Collection[str],
    drop: Callable[[Sample, str], None],
) -> Iterator[Sample]:
    """The samples with their scores, and those of the questions they answer, in their metadata.

    Args:
        names: of the scores that were asked for; a sample that has one of them neither here nor from its corpus,
            since nothing came from the model, is dropped as "unscored".
    """
    for sample in samples:
        of_question = scores.get(str(sample.metadata.get("question")), {})
        scored = replace(sample, metadata={**sample.metadata, **of_question, **scores.get(sample.id, {})})
        if all(name in scored.metadata for name in names):
            yield scored
        else:
            drop(sample, "unscored")


async def ask_perplexity(client: ChatClient, sample: Sample, rollout: int) -> Answer:
    """exp of the mean negative logprob of the assistant's last turn, its content without the end token.

    Two requests, which only vLLM's servers answer: the prompt alone says how many tokens it has, the whole
    conversation gives the logprobs of all tokens.

    Raises:
        BadSample: the sample has no answer of an assistant's, or it was not understood as one.
        NoAnswer: the server gave none.
        ValueError: the server gives no logprobs of prompts.
    """
    if not sample.messages or sample.messages[-1].role != "assistant" or not sample.messages[-1].content:
        raise BadSample("text", "no answer of an assistant to score")
    messages = chat_messages(sample.messages, sample.images)
    common = {"max_tokens": 1, "temperature": 0.0}
    prompt = await client.ask({"messages": messages[:-1], **common}, f"{sample.id}/prompt")
    ending = {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0}
    whole = await client.ask({"messages": messages, **common, **ending}, f"{sample.id}/whole")
    if not whole.prompt_logprobs:
        raise ValueError("the server gives no prompt_logprobs: perplexity needs vLLM's server")
    logprobs = whole.prompt_logprobs[prompt.tokens_in - 1 :]
    if len(whole.prompt_logprobs) != whole.tokens_in - 1 or not logprobs:
        raise BadSample(
            "tokens",
            f"{whole.tokens_in} tokens with the answer, {prompt.tokens_in} without, and "
            f"{len(whole.prompt_logprobs)} logprobs",
        )
    return Answer(
        id=sample.id,
        rollout=rollout,
        source=sample.source,
        teacher=client.model,
        tokens_in=prompt.tokens_in + whole.tokens_in,
        tokens_out=2,
        seconds=round(prompt.seconds + whole.seconds, 3),
        attempts=prompt.attempts + whole.attempts,
        hedged=prompt.hedged or whole.hedged,
        perplexity=math.exp(min(-sum(logprobs) / len(logprobs), 700.0)),  # below what floats hold
    )


def _rows(kind: str, answers: list[Answer]) -> list[dict[str, str | float]]:
    """The line of one sample, or none."""
    if kind == "pass_rate":
        return [{"id": id, "pass_rate": rate} for id, rate in pass_rates(answers).items()]
    return [{"id": a.id, "perplexity": a.perplexity} for a in answers if a.perplexity is not None]
