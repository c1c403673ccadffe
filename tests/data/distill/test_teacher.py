"""Requests to a teacher, and samples made of its responses: pure functions."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_pipeline.distill.config import TeacherConfig
from data_pipeline.distill.responses import TeacherResponse
from data_pipeline.distill.teacher import (
    build_samples,
    build_target,
    clean_question,
    data_url,
    parse_response,
    teacher_messages,
    teacher_request,
)
from data_pipeline.errors import BadSample
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message, Sample
from tests.helpers.videos import ask_about, draw_png, make_video


@pytest.fixture(scope="module")
def sample() -> Sample:
    return next(digit_samples("test", 1, 0))


@pytest.mark.parametrize(
    ("response", "thought", "answer"),
    [
        ("<think>a</think><answer>b</answer>", "a", "b"),
        ("<think>\na\n</think>\n\nSo it is.\n<answer> b </answer>\nBye.", "a", "b"),
        ("a</think><answer>b</answer>", "a", "b"),  # the chat template wrote <think>
        ("<tool_call>a</think><answer>b</answer>", "a", "b"),
        ("<think>a</think><tool_call><answer>b</answer></tool_call>", "a", "b"),
        ("First a. <answer>b</answer>", "First a.", "b"),  # all text before the answer is the thought
        ("a <answer>b</answer> no, <answer>c</answer>", "a <answer>b</answer> no,", "c"),
        ("<think>a</think><answer>b</answer> or <answer>c</answer>", "a", "c"),
        ("<think>is it <answer>b</answer>?</think><answer>c</answer>", "is it <answer>b</answer>?", "c"),
        ("<think>is it <answer>b</answer>?</think>yes", "is it <answer>b</answer>?", ""),
        ("<think>a</think>The answer is b.", "a", ""),
        ("<think>a</think><answer>b", "a", ""),  # cut off
        ("<think>a <answer>b</answer>", "", ""),  # the thought does not end
        ("<think></think><answer>b</answer>", "", "b"),
        ("<answer>b</answer>", "", "b"),
        ("b", "", ""),
        ("", "", ""),
    ],
)
def test_response_is_parsed_by_the_recipes_rules(response: str, thought: str, answer: str):
    assert parse_response(response) == (thought, answer)
    if thought and answer:
        assert parse_response(build_target(thought, answer)) == (thought, answer), (
            "the learned text parses alike"
        )


def test_format_phrases_are_removed():
    form = "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    assert clean_question(f"<image>Context: N/A\nWhat is it? {form}") == "<image>\nWhat is it?"
    assert clean_question("How many? Answer the question using a single word or phrase.") == "How many?"


def test_images_replace_their_marks(sample: Sample):
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


def test_png_and_jpeg_are_sent_unchanged_and_others_as_png():
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
        data_url(b"RIFF but not an image")


def test_request_is_seeded_by_question_and_rollout(sample: Sample):
    teacher = TeacherConfig(max_tokens=9, top_p=0.5, extra_body='{"top_k": 20}')
    body, key = teacher_request(sample, 3, teacher)
    assert key == f"42/{sample.id}/3"
    assert {name: body[name] for name in ("temperature", "max_tokens", "top_p", "top_k")} == {
        "temperature": 1.0,
        "max_tokens": 9,
        "top_p": 0.5,
        "top_k": 20,
    }
    assert body["messages"] == teacher_messages(sample, teacher.system_prompt)
    seeds = {
        teacher_request(sample, n, t)[0]["seed"]
        for n in range(4)
        for t in (teacher, replace(teacher, seed=7), replace(teacher, name="other"))
    }
    assert len(seeds) == 12 and "top_p" not in teacher_request(sample, 0, TeacherConfig())[0]
    with pytest.raises(BadSample, match="no_reference"):
        teacher_request(replace(sample, answer=""), 0, teacher)


def test_first_kept_responses_become_samples(sample: Sample):
    def respond(rollout: int, reason: str = "") -> TeacherResponse:
        response = f"thinking {rollout} <answer>{sample.answer}</answer>"
        verdict = {"accuracy": float(not reason), "decided_by": "exact", "reason": reason}
        return TeacherResponse(id=sample.id, rollout=rollout, teacher="t", response=response, **verdict)

    responses = [respond(0, "wrong"), respond(1), respond(2, "truncated"), respond(3), respond(4)]
    kept = list(build_samples([sample], responses, 2))
    assert [k.id for k in kept] == [f"{sample.id}#1", f"{sample.id}#3"]
    assert kept[0].messages[-1].content == f"<think>thinking 1</think><answer>{sample.answer}</answer>"
    assert kept[1].metadata["rollout"] == 3 and kept[1].metadata["question"] == sample.id
    assert [len(list(build_samples([sample], responses, n))) for n in (1, 4, 8)] == [1, 3, 3]
    others = [replace(sample, id="before"), sample, replace(sample, id="behind")]
    assert list(build_samples(others, responses, 2)) == kept, "samples without a kept response give none"
    asked = iter([replace(response, id=id) for id in "abc" for response in responses])
    stream = build_samples((replace(sample, id=id) for id in "abc"), asked, 2)
    assert next(stream).id == "a#1" and len(list(asked)) >= 3 * 5 - 2, "no more is read than was asked for"
    with pytest.raises(ValueError, match="'gone', but no such question"):
        list(build_samples(others, [*responses, replace(responses[1], id="gone")], 2))


def test_a_video_is_asked_about_with_its_frames_and_times():
    video = make_video(3, fps=4.0)
    sample = ask_about([video], [draw_png((28, 28), np.random.default_rng(0))])
    (turn,) = teacher_messages(sample, "")
    kinds = [part["text"] if part["type"] == "text" else "picture" for part in turn["content"]]
    times = ["<0.0 seconds>", "picture", "<0.5 seconds>", "picture", "<1.0 seconds>", "picture"]
    assert kinds == ["picture", "What ", *times, " is 3 plus 4?"]
    with pytest.raises(BadSample, match="1 marks <video> in the text, but 2 videos"):
        teacher_messages(replace(sample, videos=(video, video)), "")
    plain = replace(
        sample, videos=(), images=(), messages=(Message(role="user", content="Is <video> a tag?"),)
    )
    assert teacher_messages(plain, "")[0]["content"] == "Is <video> a tag?"
