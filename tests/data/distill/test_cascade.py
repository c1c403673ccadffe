"""A cascade of two real models of two families, each behind a vLLM server of its own, through a whole curation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.curate.curate import curate
from data_pipeline.curate.funnel import FUNNEL, Funnel
from data_pipeline.distill.config import AssignConfig, TeacherConfig
from data_pipeline.distill.responses import TeacherResponse, merge_responses, read_shard_responses
from data_pipeline.served.config import ServerConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.config import RowsConfig
from data_pipeline.sources.digits import digit_samples
from data_pipeline.verify.check import check_answer
from data_pipeline.verify.config import CheckerConfig
from tests.helpers.model_server import ModelServer

pytestmark = pytest.mark.heavy

FORM = '{"structured_outputs": {"regex": "<think>[0-9]{1,3}</think><answer>[3-6]</answer>"}}'
"""Holds random models to the form of an answer, and to four digits of which one in four is right by chance."""
SIZES = {"qwen2_5": 2, "qwen3": 4}
"""Responses to each question: more of the later teacher, so that it solves some of what the first leaves."""


@pytest.fixture(scope="package")  # as the first server, so that both start at the same time
def other(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    server = ModelServer(tiny_qwen3, tmp_path_factory.mktemp("other") / "log.txt")
    yield server
    server.kill()


def test_second_model_is_asked_what_the_first_left(other: ModelServer, server: ModelServer, tmp_path: Path):
    other.wait_until_ready()
    questions = [sample for sample in digit_samples("test", 80, 0) if sample.answer in "3456"][:12]
    write_shards(questions, tmp_path / "questions")
    teachers = tuple(
        TeacherConfig(
            name=name,
            server=ServerConfig(base_url=f"{served.url}/v1"),
            k=k,
            max_tokens=64,
            extra_body=FORM,
            checker=CheckerConfig(workers=1),
            price_in=1.0,
            price_out=2.0,
        )
        for (name, k), served in zip(SIZES.items(), (server, other), strict=True)
    )
    rows = RowsConfig(path=str(tmp_path / "questions"))
    recipe = CurateConfig(
        out=str(tmp_path / "out"),
        sources=(SourceConfig(name="digits", corpus=SHARDS, rows=rows, responses="distill"),),
        deduplicate=False,
        teachers=teachers,
        assign=AssignConfig(way="cascade"),
        per_question=1,
        keep="likeliest_answer",
    )
    curate(recipe)

    index, out = ShardIndex.load(tmp_path / "out/filtered/digits"), tmp_path / "out/distilled/digits/teachers"
    said = {name: list(read_shard_responses(out / name, index, 0)) for name in SIZES}
    solved = {name: {found.id for found in responses if not found.reason} for name, responses in said.items()}
    asked = {name: {found.id for found in responses} for name, responses in said.items()}
    assert asked["qwen2_5"] == {sample.id for sample in questions}
    assert asked["qwen3"] == asked["qwen2_5"] - solved["qwen2_5"]
    assert solved["qwen2_5"] and solved["qwen3"], "both took part"

    funnel = Funnel.load(tmp_path / "out" / FUNNEL)
    counts = {row.teacher: asdict(row) for row in funnel.teachers()}
    for name, responses in said.items():
        tokens_in, tokens_out = (
            sum(each.prompt_len for each in responses),
            sum(each.response_len for each in responses),
        )
        row = counts[name]
        assert tokens_in > 0 and (row["prompt_len"], row["response_len"]) == (tokens_in, tokens_out)
        assert (row["questions"], row["solved"]) == (len(asked[name]), len(solved[name]))
        assert row["responses"] == len(responses) == SIZES[name] * len(asked[name])
        assert row["right"] == sum(each.accuracy > 0 for each in responses)
        assert row["cost"] == pytest.approx((tokens_in + 2 * tokens_out) / 1e6)

    kept = [
        found for found in merge_responses([str(out / name) for name in SIZES], index, 0) if not found.reason
    ]
    samples = list(read_shards(tmp_path / "out/mixed"))
    assert len(samples) == funnel.totals["mixed"] == len(solved["qwen2_5"] | solved["qwen3"])
    for sample in samples:
        assert check_answer(sample.messages[-1].content, sample.answer).accuracy == 1
        rivals = [found for found in kept if found.id == sample.metadata["question"]]
        best = max(rivals, key=likelihood)
        assert (sample.metadata["teacher"], sample.metadata["rollout"]) == (best.teacher, best.rollout)


def likelihood(response: TeacherResponse) -> float:
    assert response.answer_logprob is not None and response.answer_logprob < 0
    return response.answer_logprob
