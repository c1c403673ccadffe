"""What a model refuses is said from texts and headers, exactly, and without tokenizing what is far too long."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.chat_format import ChatFormat
from data_pipeline.encode.config import QWEN2_5_VL_PATCHES, ImageConfig
from data_pipeline.encode.limits import ModelLimits
from data_pipeline.errors import BadSample
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message, Sample
from tests.helpers.bad_samples import bad_questions, with_question

SAMPLES = list(digit_samples("train", 3, 0))
CAUSES = bad_questions(SAMPLES[0])


@pytest.fixture(scope="module")
def limits(tiny_hf) -> ModelLimits:
    return ModelLimits.from_hf(
        tiny_hf, ImageConfig(), max_tokens=2_000, max_images=1, images_field="engine.max_images"
    )


@pytest.fixture(scope="module")
def composing(tiny_hf) -> ChatFormat:
    """With the normalizer of the published tokenizer: a letter and its accent become one character."""
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(tiny_hf))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return ChatFormat(tokenizer)


@pytest.mark.parametrize("cause", sorted(CAUSES.keys() - {"torn", "no reference"}))
def test_each_cause_is_named_for_prompts_and_for_training(limits, cause):
    sample, words = CAUSES[cause]
    for check in (limits.check, limits.tokenize_prompt, ChatEncoder(limits).engine_prompt):
        with pytest.raises(BadSample) as caught:
            check(sample)
        assert str(caught.value).startswith(words)


def test_pixels_are_checked_where_they_are_decoded(limits):
    sample, words = CAUSES["torn"]
    limits.check(sample)
    with pytest.raises(BadSample, match=words):
        ChatEncoder(limits).encode(sample)


@pytest.mark.parametrize("text", ["", " \n", "\u3000"])
def test_blank_turns_of_the_assistant_are_refused(limits, text):
    answer = SAMPLES[0].messages[-1]
    early = [
        Message(role="user", content="a"),
        replace(answer, content=text),
        Message(role="user", content="b"),
    ]
    for messages in ([*SAMPLES[0].messages[:-1], replace(answer, content=text)], [*early, answer]):
        with pytest.raises(BadSample, match="text: a turn of the assistant is blank"):
            limits.check(
                replace(SAMPLES[0], messages=tuple(messages), images=SAMPLES[0].images[: len(messages) % 2])
            )
    limits.tokenize_prompt(
        replace(SAMPLES[0], messages=(*SAMPLES[0].messages[:-1], replace(answer, content=text)))
    )


def test_a_template_that_refuses_the_turns_is_a_bad_sample(tiny_hf):
    tokenizer = AutoTokenizer.from_pretrained(tiny_hf)
    tokenizer.chat_template = "{{ raise_exception('turns must alternate') }}"
    with pytest.raises(BadSample, match="chat template refuses the turns: turns must alternate"):
        ChatFormat(tokenizer).render([Message(role="user", content="hi")])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
def test_lengths_are_those_of_the_encoded_sample(limits, sample):
    """One token more than fits is refused, and none less; of prompts too."""
    encoder = ChatEncoder(limits)
    for size, check in (
        (len(encoder.encode(sample)), ModelLimits.check),
        (len(encoder.encode_prompt(sample)), ModelLimits.tokenize_prompt),
    ):
        check(replace(limits, max_tokens=size), sample)
        with pytest.raises(BadSample, match=f"too_long: .*{size} tokens, more than max_tokens={size - 1}"):
            check(replace(limits, max_tokens=size - 1), sample)


PIECES = st.sampled_from(
    ["e\u0301", "\u1100\u1161", "answer", "<think>", " ", "\n", "7", "\u4f60", "\U0001f600", "x"]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(st.characters(exclude_categories=["Cs"]), max_size=9))).map(
    "".join
)


@settings(deadline=None)
@given(text=TEXTS, times=st.integers(1, 40))
@example(text="e\u0301", times=40)
@example(text="\ufb2a", times=1)  # composed it would be longer
def test_the_bound_never_exceeds_the_tokens(limits, composing, text, times):
    text *= times
    for chat in (limits.chat, composing):
        tokens = len(chat._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        assert chat.count_at_least(text) <= tokens


def test_the_bound_is_close_where_tokens_are_long(limits):
    vocabulary = limits.chat._tokenizer.get_vocab()
    longest = max((token for token in vocabulary if token.isalpha() and token.isascii()), key=len)
    assert len(longest) > 2
    assert limits.chat.count_at_least(longest * 100) >= 100 > 100 - len(longest)


def test_ten_megabytes_are_refused_without_tokenizing(limits, monkeypatch):
    def tokenize(*_: object) -> None:
        raise AssertionError("tokenizes a text that is far too long")

    monkeypatch.setattr(ChatFormat, "tokenize", tokenize)
    for text in ("Add up. " * 1_300_000, "7" * 10_000_000, "\u4f60\u597d" * 2_000_000):
        long = replace(with_question(SAMPLES[0], text), images=())
        with pytest.raises(BadSample, match=r"too_long: at least \d+ tokens, more than max_tokens=2000"):
            limits.check(long)


def test_bound_is_off_for_tokenizers_of_another_kind(tiny_hf):
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(tiny_hf))
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert ChatFormat(tokenizer).count_at_least("A" * 100) == 0


CONVERSATIONS = {
    "single": ["u:What is 3 plus 4?", "a:<think>3+4=7</think><answer>7</answer>"],
    "turns": ["s:Be brief.", "u:3+4?", "a:7", "u:Sure?", "a:Yes, 7.", "u:And 2+2?", "a:4"],
    "greeting": ["a:Hello.", "u:3+4?", "a:7"],
    "repeated": ["u:a", "a:assistant\n", "u:a", "a: assistant", "u:a", "a:user\na"],
    "in a row": ["u:a", "a:b", "a:c"],
}
ROLES = {"s": "system", "u": "user", "a": "assistant"}
GENERATION = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}{{ '\n' }}{% endfor %}"
)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_loss_mask_is_that_of_transformers(limits, tiny_hf, name):
    """Its template marks what the assistant generates: each turn's text and the token that ends it."""
    turns = [(ROLES[line[0]], line[2:]) for line in CONVERSATIONS[name]]
    tokenizer = AutoTokenizer.from_pretrained(tiny_hf)
    theirs = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        chat_template=GENERATION,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    ours = ChatEncoder(limits).encode(Sample(id="1", source="test", messages=messages))
    mask = theirs["assistant_masks"][: len(ours)]
    assert ours.input_ids.tolist() == theirs["input_ids"][: len(ours)]
    assert ours.loss_mask.tolist() == mask and sum(theirs["assistant_masks"]) == sum(mask)
    last = ChatEncoder(limits).encode(Sample(id="1", source="test", messages=messages), "last")
    assert last.input_ids.tolist() == ours.input_ids.tolist()
    first = len(mask) - mask[::-1].index(0)
    assert last.loss_mask.tolist() == [float(place >= first) for place in range(len(mask))]


def test_a_template_that_changes_earlier_turns_can_learn_the_last_alone(tiny_hf):
    """As templates that drop the thoughts of earlier turns do."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_hf)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}"
    )
    encoder = ChatEncoder(
        ModelLimits(chat=ChatFormat(tokenizer), image=ImageConfig(), patches=QWEN2_5_VL_PATCHES)
    )
    turns = [("user", "a"), ("assistant", "<think>t</think>b"), ("user", "c"), ("assistant", "d")]
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    sample = Sample(id="1", source="test", messages=messages)
    with pytest.raises(BadSample, match="changes an earlier turn of the assistant; learn with loss_on=last"):
        encoder.encode(sample)
    learned = encoder.encode(sample, "last")
    assert encoder.decode(learned.input_ids[learned.loss_mask == 1].tolist()) == "d"
