"""The sweep over token limits: what a cut response is, and that it is what an evaluation of that limit gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.encode.chat_format import ChatFormat
from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.verify.check import Verdict, check_answer
from rl.config import EngineConfig, EvalConfig, SamplingConfig
from rl.evaluation.ask import Answer, start_engines
from rl.prompts.stream import load_prompt_limits, read_prompts
from rl.results.budgets import Sweep, check_budgets, choose_evaluations, cut_questions, sweep_budgets
from rl.results.stored import StoredEvaluation, load_evaluations
from rl.results.units import UnitMetric
from rl.rollout.calls import Request
from rl.types import AskedResponse, Prompt
from tests.helpers.evaluations import make_records, write_evaluation

TEXT = "<think>4 0 3. 4+0=4 4+3=7</think><answer>7</answer>"


def check(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    return [check_answer(*pair) for pair in pairs]


def load(folder: Path) -> StoredEvaluation:
    (found,) = load_evaluations(folder).values()
    return found


def respond(chat: ChatFormat, text: str, name: str, **more: object) -> AskedResponse:
    """Returns the record of a response that ends by itself."""
    verdict = check_answer(text, "7")
    fields = {"response": text, "response_len": len(chat.tokenize(text)) + 1, "finish_reason": "stop"}
    return replace(make_records({name: [1.0]})[0].with_verdict(verdict), **fields | more)


def test_answer_counts_where_it_stands_within_the_budget(tiny_hf: Path, tmp_path: Path):
    chat = ChatFormat.from_hf(tiny_hf)
    size = len(chat.tokenize(TEXT))
    records = [respond(chat, TEXT, "q"), *make_records({"refused": []})]
    evaluation = load(write_evaluation(tmp_path / "a", records, settings={"sampling.max_tokens": 99}))
    sweep = sweep_budgets(
        evaluation, [size, size + 1, size - 1, 3, size], chat, check, UnitMetric(metadata={}), seed=1
    )
    assert [(p.budget, p.score.accuracy, p.mean_tokens, p.truncated) for p in sweep.points] == [
        (3, 0.0, 3, 1.0),
        (size - 1, 0.0, size - 1, 1.0),  # the tag is not closed
        (size, 0.5, size, 1.0),  # whole, but for the token that ends it
        (size + 1, 0.5, size + 1, 0.0),
        (99, 0.5, size + 1, 0.0),
    ]
    assert (sweep.responses, sweep.inexact) == (1, 0)


def test_verdict_of_a_judge_is_kept_while_the_answer_is_the_same(tiny_hf: Path):
    chat = ChatFormat.from_hf(tiny_hf)
    text = "<think>4+3=7</think><answer>4</answer>"
    long = replace(respond(chat, text + " 4+0=4 4+3=7", "q"), accuracy=1.0, decided_by="judge", extracted="4")
    ids = {("q", 0): chat.tokenize(long.response or "")}
    ends = {}
    for budget in range(1, long.response_len - 1):
        (record,) = cut_questions({"q": [long]}, budget, ids, chat, check)["q"]
        ends[record.extracted] = (record.accuracy, record.decided_by)
    assert ends["4"] == (1.0, "judge") and ends[""] == (0.0, "none")


def test_text_that_encodes_to_another_number_of_tokens_is_counted(tiny_hf: Path, tmp_path: Path):
    chat = ChatFormat.from_hf(tiny_hf)
    record = respond(chat, TEXT, "q")
    odd = replace(record, id="r", response_len=record.response_len + 1)
    evaluation = load(write_evaluation(tmp_path / "a", [record, odd]))
    sweep: Sweep = sweep_budgets(evaluation, [3], chat, check, UnitMetric(metadata={}), seed=1)
    assert (sweep.responses, sweep.inexact) == (2, 1)


@pytest.mark.parametrize(
    ("budget", "settings", "source", "words"),
    [
        (65, {}, "digits", "--budgets 65 must be from 1 to 64, by the sampling.max_tokens"),
        (65, {"sampling.max_tokens": 99, "engine.max_model_len": 65}, "digits", "65 must be from 1 to 64"),
        (0, {}, "digits", "--budgets 0 must be from 1"),
        (8, {"reward.correct_by": "box_iou"}, "digits", "was scored by box_iou"),
        (8, {}, "mars2_vg_rs", "was scored by mars2_vg_rs"),
    ],
)
def test_budgets_that_cannot_be_read_are_refused(
    budget: int, settings: dict[str, object], source: str, words: str, tmp_path: Path
):
    records = make_records({"q": [1.0]}, source=source)
    with pytest.raises(ValueError, match=words):
        check_budgets(load(write_evaluation(tmp_path / "a", records, settings=settings)), [budget])


def test_evaluations_that_cannot_be_cut_are_left_out_with_a_note(tmp_path: Path):
    write_evaluation(tmp_path / "all/a", make_records({"q": [1.0]}))
    write_evaluation(tmp_path / "all/b", make_records({"q": [1.0]}, source="mars2_vg_rs"))
    evaluations, notes = load_evaluations(tmp_path / "all"), list[str]()
    assert list(choose_evaluations(evaluations, [8], notes)) == ["digits"]
    assert "Without budgets" in notes[0] and "was scored by mars2_vg_rs" in notes[0]
    with pytest.raises(ValueError, match=r"65 must be from 1 to 64.*; --budgets 65"):
        choose_evaluations(evaluations, [65], [])


@pytest.mark.heavy
def test_cut_responses_are_those_that_an_engine_gives_with_that_limit(tiny_hf: Path, tmp_path: Path):
    """Greedy and sampled, cut at the tokens that were sampled: an untrained model's texts do not encode to them."""
    write_shards(digit_samples("test", 12, 0, cell=28), tmp_path / "shards")
    config = EvalConfig(
        model=str(tiny_hf),
        shards=str(tmp_path / "shards"),
        out=str(tmp_path / "out"),
        engine=EngineConfig(
            precision="fp32", max_model_len=512, max_num_seqs=8, max_images=1, cpu_kv_cache_gib=0.1
        ),
        image=ImageConfig(min_pixels=784),
        sampling=SamplingConfig(n=1, temperature=1.0, max_tokens=12),
    )
    prompts = [prompt for prompt, _ in read_prompts(config.shards, load_prompt_limits(config), 0)]
    with start_engines(config) as answer:
        for temperature in (0.0, 1.0):
            (long, ids), (short, _) = (
                ask(answer, prompts, SamplingConfig(n=1, temperature=temperature, max_tokens=limit))
                for limit in (12, 5)
            )
            assert sum(record.response_len > 5 for (record,) in long.values()) >= 6
            cut = cut_questions(long, 5, ids, ChatFormat.from_hf(tiny_hf), check)
            assert cut == short and len(cut) == 12 and cut != long


def ask(
    answer: Answer, prompts: Sequence[Prompt], sampling: SamplingConfig
) -> tuple[dict[str, list[AskedResponse]], dict[tuple[str, int], list[int]]]:
    """Returns the records of an engine's responses, and their tokens."""
    requests = [Request(prompt=prompt, sampling=sampling, seed=0) for prompt in prompts]
    records, ids = {}, {}
    for place, responses in answer(requests):
        (rollout,), prompt = responses.rollouts, prompts[place]
        record = AskedResponse(
            id=prompt.ref.id,
            answer=prompt.answer,
            response=rollout.response,
            response_len=len(rollout.token_ids),
            finish_reason=rollout.finish_reason,
        )
        records[prompt.ref.id] = [record.with_verdict(check_answer(rollout.response, prompt.answer))]
        ids[prompt.ref.id, 0] = rollout.token_ids.tolist()
    return records, ids
