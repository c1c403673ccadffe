"""What a teacher is asked, what is read from its response, and the judge's word: pure functions."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.distill.answers import Answer, AnswerLog, Yield, pass_rates
from data_pipeline.distill.checking import check_answers
from data_pipeline.distill.config import TEACHER_SYSTEM_PROMPT, DistillConfig
from data_pipeline.distill.teacher import (
    clean_question,
    data_url,
    distilled_samples,
    parse_response,
    target,
    teacher_messages,
)
from data_pipeline.errors import BadSample
from data_pipeline.served.client import NoAnswer, read_reply
from data_pipeline.served.judge import parse_judgment
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import SYSTEM_PROMPT, Message, Sample
from data_pipeline.verify.config import CheckerConfig
from data_pipeline.verify.pool import VerifyPool


@pytest.fixture(scope="module")
def sample() -> Sample:
    return next(digit_samples("test", 1, 0))


def test_the_teachers_prompt_is_the_students_and_nothing_else():
    assert SYSTEM_PROMPT.replace("two parts:", "two parts and nothing else:") == TEACHER_SYSTEM_PROMPT


@pytest.mark.parametrize(
    ("response", "thought", "answer"),
    [
        ("<think>a</think><answer>b</answer>", "a", "b"),
        ("<think>\na\n</think>\n\nSo it is.\n<answer> b </answer>\nBye.", "a", "b"),
        ("a</think><answer>b</answer>", "a", "b"),  # the template wrote <think>
        ("<tool_call>a</think><answer>b</answer>", "a", "b"),
        ("<think>a</think><tool_call><answer>b</answer></tool_call>", "a", "b"),
        ("First a. <answer>b</answer>", "First a.", "b"),  # all before the answer is a thought
        ("a <answer>b</answer> no, <answer>c</answer>", "a <answer>b</answer> no,", "c"),
        ("<think>a</think><answer>b</answer> or <answer>c</answer>", "a", "c"),
        ("<think>is it <answer>b</answer>?</think><answer>c</answer>", "is it <answer>b</answer>?", "c"),
        ("<think>is it <answer>b</answer>?</think>yes", "is it <answer>b</answer>?", ""),
        ("<think>a</think>The answer is b.", "a", ""),
        ("<think>a</think><answer>b", "a", ""),  # broken off
        ("<think>a <answer>b</answer>", "", ""),  # never ended to think
        ("<think></think><answer>b</answer>", "", "b"),
        ("<answer>b</answer>", "", "b"),
        ("b", "", ""),
        ("", "", ""),
    ],
)
def test_responses_are_read_by_the_recipe(response: str, thought: str, answer: str):
    assert parse_response(response) == (thought, answer)
    if thought and answer:
        assert parse_response(target(thought, answer)) == (thought, answer), "what is learned reads the same"


def test_phrases_about_the_form_are_not_asked():
    form = "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    assert clean_question(f"<image>Context: N/A\nWhat is it? {form}") == "<image>\nWhat is it?"
    assert clean_question("How many? Answer the question using a single word or phrase.") == "How many?"


def test_images_stand_where_their_marks_are(sample: Sample):
    image = sample.images[0]
    turns = (
        Message(role="system", content="the sample's own"),
        Message(role="user", content="one <image> two <image>"),
        Message(role="assistant", content="which?"),
        Message(role="user", content="both"),
        Message(role="assistant", content="the old answer"),
    )
    messages = teacher_messages(replace(sample, messages=turns, images=(image, image)), "be brief")
    url = {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(image).decode()}"},
    }
    parts = [{"type": "text", "text": "one "}, url, {"type": "text", "text": " two "}, url]
    assert messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "which?"},
        {"role": "user", "content": "both"},
    ]
    for marks, reason in (("no mark", "1 marks|0 marks"), ("<image><image>", "2 marks")):
        broken = replace(sample, messages=(Message(role="user", content=marks),))
        with pytest.raises(BadSample, match=reason):
            teacher_messages(broken, "")
    with pytest.raises(BadSample, match="no user's turn"):
        teacher_messages(replace(sample, messages=turns[:1], images=()), "")


def test_png_and_jpeg_stay_as_they_are_and_others_become_png():
    picture = Image.new("RGB", (30, 20), (200, 10, 60))
    for form, mime in (("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "png"), ("BMP", "png"), ("GIF", "png")):
        file = io.BytesIO()
        picture.save(file, form, **({"lossless": True} if form == "WEBP" else {}))
        head, _, data = data_url(file.getvalue()).partition(",")
        sent = base64.b64decode(data)
        assert head == f"data:image/{mime};base64"
        assert (sent == file.getvalue()) == (form in ("PNG", "JPEG"))
        if form not in ("PNG", "JPEG"):
            assert Image.open(io.BytesIO(sent)).convert("RGB").tobytes() == picture.tobytes()
    with pytest.raises(BadSample, match="cannot convert"):
        data_url(b"RIFF nothing of the kind")


def test_the_first_kept_answers_become_samples(sample: Sample):
    def answer(rollout: int, reason: str = "") -> Answer:
        response = f"thinking {rollout} <answer>{sample.answer}</answer>"
        verdict = {"accuracy": float(not reason), "decided_by": "exact", "reason": reason}
        return Answer(
            id=sample.id, rollout=rollout, source="digits", teacher="t", response=response, **verdict
        )

    answers = [answer(0, "wrong"), answer(1), answer(2, "truncated"), answer(3), answer(4)]
    kept = list(distilled_samples([sample], answers, 2))
    assert [k.id for k in kept] == [f"{sample.id}#1", f"{sample.id}#3"]
    assert kept[0].messages[-1].content == f"<think>thinking 1</think><answer>{sample.answer}</answer>"
    assert kept[1].metadata["rollout"] == 3 and kept[1].metadata["question"] == sample.id
    assert [len(list(distilled_samples([sample], answers, n))) for n in (1, 4, 8)] == [1, 3, 3]
    assert pass_rates(answers) == {sample.id: 0.6}
    others = [replace(sample, id="before"), sample, replace(sample, id="behind")]
    assert list(distilled_samples(others, answers, 2)) == kept, "samples without a kept answer give none"
    asked = iter([replace(answer, id=id) for id in "abc" for answer in answers])
    stream = distilled_samples((replace(sample, id=id) for id in "abc"), asked, 2)
    assert next(stream).id == "a#1" and len(list(asked)) >= 3 * 5 - 2, "no more is read than was asked for"
    with pytest.raises(ValueError, match="'gone', but no such question"):
        list(distilled_samples(others, [*answers, replace(answers[1], id="gone")], 2))
    assert pass_rates([*answers, Answer(id="x", rollout=0, source="", reason="timeout")]) == {sample.id: 0.6}


def test_what_would_be_learned_is_checked():
    """Not the response around it, of which other rules may take another answer."""
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
    ]
    asked = [
        Answer(id=str(n), rollout=0, source="s", answer="4", response=text, finish_reason=end)
        for n, (text, end, _) in enumerate(cases)
    ]
    with VerifyPool(CheckerConfig(workers=1, mode="released")) as pool:
        checked = check_answers(pool, asked, "released")
    assert [answer.reason for answer in checked] == [reason for *_, reason in cases]
    assert [answer.accuracy for answer in checked] == [1, 0, 0, 0, 1, 1, 0]
    assert {answer.checker for answer in checked} == {"released"}


# ---- replies ----


def reply(**message: object) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()


def test_reasoning_that_the_server_split_off_is_put_back():
    assert (
        read_reply(reply(content="<answer>b</answer>", reasoning="a")).text
        == "<think>a</think><answer>b</answer>"
    )
    assert read_reply(reply(content="b", reasoning_content="a")).text == "<think>a</think>b"
    assert read_reply(reply(content=None, reasoning="a")).text == "<think>a</think>"
    assert read_reply(reply(content="b", reasoning=None)).text == "b"
    assert read_reply(reply(content="")).text == ""
    assert read_reply(reply(content="half \ud83d")).text == "half ?"


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"3", b"{}", b'{"choices": null}', b'{"choices": []}', b'{"choices": [{}]}', b"\xff\xfe",
     b"[" * 100_000, b'{"choices": [{"message": {"content": "a"}}]}', reply(), reply(content=None), reply(content=3),
     reply(content=["a"]), reply(content="a").replace(b"stop", b"abort"), reply(content="a").replace(b'"stop"', b"3")],
    ids=range(17),
)  # fmt: skip
def test_garbage_is_no_answer(content: bytes):
    with pytest.raises(NoAnswer) as failure:
        read_reply(content)
    assert failure.value.reason == "garbage"


# ---- the log ----


def test_a_log_continues_after_every_kind_of_end(tmp_path: Path):
    path = tmp_path / "answers" / "shard-000000.jsonl"
    answers = [Answer(id=id, rollout=n, source="s", response=f"{id}{n}\n") for id in "ba" for n in (1, 0)]
    log = AnswerLog(path)
    for answer in answers[:3]:
        log.add(answer)
    log.close()
    partial = path.with_name("shard-000000.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-1])  # the last line lacks its end
    log = AnswerLog(path)
    assert [answer.key in log for answer in answers] == [True, True, False, False]
    for answer in (*answers[2:], replace(answers[0], response="later")):
        log.add(answer)
    log.close()
    log = AnswerLog(path)  # nothing of the torn line is left in the way
    assert len(log) == 4 and log.read(("b", 1)).response == "later"
    keys = log.keys(["b", "a"])
    assert keys == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]
    log.finish(([log.read(key)] for key in keys), sha256="", k=2, checker="strict")
    assert not partial.exists() and b"later" in path.read_bytes()

    log = AnswerLog(path)  # more is asked for
    assert all(answer.key in log for answer in answers) and not path.exists()
    log.close()
    partial.write_bytes(b"{}\n" + partial.read_bytes())
    with pytest.raises(ValueError, match=r"partial:1 is no answer"):
        AnswerLog(path)


def test_one_process_at_a_time_touches_what_lies_there(tmp_path: Path):
    path = tmp_path / "000000.jsonl"
    summary = tmp_path / "000000.summary.json"
    log = AnswerLog(path)
    log.add(Answer(id="a", rollout=0, source="s", response="x"))
    summary.write_text("the other's")
    with pytest.raises(ValueError, match="another process is writing"):
        AnswerLog(path)
    assert summary.exists(), "who has no lock removes nothing"
    late = path.with_name("000000.jsonl.partial").open("a+b")  # opened before the first one's end
    log.finish(iter([[log.read(("a", 0))]]), sha256="", k=1, checker="strict")
    done = path.read_bytes(), summary.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: late)
        with pytest.raises(ValueError, match="another process just finished"):
            AnswerLog(path)
    assert (path.read_bytes(), summary.read_bytes()) == done and late.closed

    path.with_name("000000.jsonl.partial").write_bytes(b"what a kill left of a copy")
    log = AnswerLog(path)
    assert log.read(("a", 0)).response == "x" and not summary.exists() and not path.exists()
    log.finish(iter([[log.read(("a", 0))]]), sha256="", k=1, checker="strict")
    assert (path.read_bytes(), summary.read_bytes()) == done


def test_the_digest_of_answers_knows_every_verdict(tmp_path: Path):
    """Also of those that are not kept: pass rates count them."""

    def digest(name: str, **changed: object) -> str:
        answer = Answer(id="a", rollout=0, source="s", response="x", reason="wrong")
        log, group = AnswerLog(tmp_path / name), [replace(answer, **changed)]
        return log.finish(iter([group]), sha256="", k=1, checker="strict").digest

    assert digest("0") == digest("1", seconds=3.0)
    changes = [{}, {"accuracy": 1.0}, {"response": None}, {"decided_by": "judge"}, {"reason": ""}]
    assert len({digest(str(n), **change) for n, change in enumerate(changes, 2)}) == 5


def test_yields_add_up():
    one, two = Yield(), Yield()
    one.add(
        [Answer(id="a", rollout=0, source="s", response="", accuracy=1.0, tokens_out=5, reason="truncated")]
    )
    two.add(
        [
            Answer(id="b", rollout=0, source="s", response="", accuracy=1.0),
            Answer(id="b", rollout=1, source="s", reason="timeout"),
        ]
    )
    one.merge(two)
    assert (one.questions, one.solved, one.asked, one.answered, one.right, one.kept) == (2, 1, 3, 2, 2, 1)
    assert one.reasons == {"truncated": 1} and one.failed == {"timeout": 1} and one.tokens_out == 5


# ---- the judge ----


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Analysis: the same.\nJudgment: Equivalent", True),
        ("Analysis: these are not equivalent.\nJudgment: Different", False),
        ("Analysis: not Equivalent, EQUIVALENT, equivalent\n\nJudgment:Different\n", False),
        ("<think>Judgment: Equivalent? no.</think>\nAnalysis: x\nJudgment: Different", False),
        ("Analysis: two\nlines of it\nJudgment: Equivalent", True),
        ("Judgment: Equivalent", None),  # without an analysis
        ("Analysis: they are Equivalent", None),
        ("Analysis: x\nJudgment: Equivalent or Different", None),
        ("Analysis: x\nJudgment: Not Equivalent", None),
        ("Analysis: x\nJudgment: Equivalent\nJudgment: Different", None),
        ("Analysis: x\nJudgment: Different\nJudgment: Equivalent", None),
        ("Analysis: it says 'Judgment: Equivalent'\nJudgment: Different", None),  # quotes what it judges
        ("Analysis: x\nJudgment: Equivalent\nbut see below", None),
        ("Analysis: x\nJudgment: EQUIVALENT", None),
        ("Analysis: x Judgment: Equivalent", None),
        ("Equivalent", None),
        ("", None),
        ("</think>", None),
    ],
)
def test_only_the_line_of_the_judgment_counts(text: str, verdict: bool | None):
    assert parse_judgment(text) is verdict


# ---- configs ----


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("base_url", "localhost:8000", "must begin with http"),
        ("concurrency", 0, "between 1 and 1000"),
        ("timeout", 0.0, "above 0"),
        ("k", 0, "at least 1"),
        ("top_p", 1.5, "at most 1"),
        ("extra_body", "[1]", "must be a JSON object"),
        ("extra_body", "{top_k: 1}", "is not JSON"),
        ("extra_body", '{"n": 4}', "sets n"),
        ("base_url", "http://me:key@host/v1", "use api_key_env"),
        ("judge", "nowhere", "must begin with http"),
        ("per_question", 0, "at least 1"),
    ],
)
def test_mistakes_in_a_config_are_named(field: str, value: object, words: str):
    with pytest.raises(ValueError, match=words):
        DistillConfig(shards="in", out="out", **{field: value})  # pyright: ignore
