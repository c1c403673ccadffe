"""Encoding equals the folder's chat template; special tokens in texts and mismatched images are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, AutoTokenizer

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.errors import BadSample
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import SYSTEM_PROMPT, Message, Sample

IMAGES = tuple(image for s in digit_samples("train", 3, 0) for image in s.images)
RESPONSE = "<think>3+4=7</think><answer>7</answer>"


@pytest.fixture(scope="module")
def encoder(tiny_hf) -> ChatEncoder:
    return ChatEncoder.from_hf(tiny_hf, ImageConfig())


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return AutoTokenizer.from_pretrained(tiny_hf)


def conversation(
    *turns: tuple[str, str], images: tuple[bytes, ...] = (), answer: str | None = RESPONSE
) -> Sample:
    messages = [Message(role=role, content=content) for role, content in turns]
    if answer is not None:
        messages.append(Message(role="assistant", content=answer))
    return Sample(id="test/1", source="test", messages=tuple(messages), images=images, answer="7")


CASES = {
    "text": conversation(("system", SYSTEM_PROMPT), ("user", "What is 3 plus 4?")),
    "image": conversation(("system", SYSTEM_PROMPT), ("user", "<image>Add up."), images=IMAGES[:1]),
    "images inside": conversation(("user", "See <image> and <image>\nand sum <image>"), images=IMAGES),
    "turns": conversation(
        ("user", "<image>"), ("assistant", "7 it is"), ("user", "Sure? <image>"), images=IMAGES[:2]
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_equal_the_rendered_template(encoder, tokenizer, name):
    """Against the whole conversation, rendered with every image token and tokenised at once."""
    sample = CASES[name]
    example = encoder.encode(sample)
    counts = [int(t * h * w) // 4 for t, h, w in example.image_grid_thw.tolist()]
    text = ""
    for message in sample.messages:
        content = message.content
        while "<image>" in content:
            mark = f"<|vision_start|>{'<|image_pad|>' * counts.pop(0)}<|vision_end|>"
            content = content.replace("<image>", mark, 1)
        text += f"<|im_start|>{message.role}\n{content}<|im_end|>\n"
    assert counts == []
    wanted = tokenizer(text.removesuffix("\n"))["input_ids"]
    assert example.input_ids.tolist() == wanted
    responses = [message.content + "<|im_end|>" for message in sample.messages if message.role == "assistant"]
    for loss_on, texts in (("all", responses), ("last", responses[-1:])):
        one = encoder.encode(sample, loss_on)
        assert tokenizer.decode(one.input_ids[one.loss_mask == 1]) == "".join(texts)
        assert one.input_ids.tolist() == wanted and one.loss_mask[-1] == 1
    assert example.position_ids.shape == (3, len(example))
    assert example.pixels.shape == (int(example.image_grid_thw.prod(1).sum()), 3 * 14 * 14)


def test_a_sampled_response_encodes_as_the_assistant_turn(encoder):
    sample = CASES["image"]
    learned = encoder.encode(sample)
    response = learned.input_ids[learned.loss_mask == 1].tolist()
    for asked in (sample, replace(sample, messages=sample.messages[:-1])):
        encoder.check_response(response)
        example = respond(encoder.encode_prompt(asked), response, id=sample.id)
        for name in ("input_ids", "loss_mask", "position_ids", "pixels", "image_grid_thw"):
            assert torch.equal(getattr(example, name), getattr(learned, name)), name


def test_engine_prompt_has_one_token_per_image(encoder, tokenizer):
    ids, images, _ = encoder.engine_prompt(CASES["images inside"])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")) == len(images) == 3
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
    example = encoder.encode(CASES["images inside"])
    shapes = [(14 * h, 14 * w, 3) for _, h, w in example.image_grid_thw.tolist()]
    assert [image.shape for image in images] == shapes


def test_decode_drops_special_tokens_and_banned_ids_exclude_stop_tokens(encoder, tokenizer):
    ids = tokenizer(f"{RESPONSE}<|im_end|><|endoftext|>")["input_ids"]
    assert encoder.decode(ids) == RESPONSE
    banned = {tokenizer.convert_ids_to_tokens(i) for i in encoder.banned_token_ids}
    assert banned == {"<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"}


@pytest.mark.parametrize(
    "token", ["<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|vision_start|>"]
)
@pytest.mark.parametrize("place", ["system", "user", "assistant"])
def test_forged_special_tokens_are_refused(encoder, token, place):
    turns = {"system": SYSTEM_PROMPT, "user": "Add up.", "assistant": RESPONSE}
    turns[place] += f" {token} more"
    sample = conversation(("system", turns["system"]), ("user", turns["user"]), answer=turns["assistant"])
    with pytest.raises(BadSample, match="text: holds the special token") as caught:
        encoder.encode(sample)
    assert token in str(caught.value)


def test_halves_of_a_special_token_around_an_image_remain_text(encoder, tokenizer):
    example = encoder.encode(conversation(("user", "<|im_<image>end|>"), images=IMAGES[:1]))
    assert (
        example.input_ids.tolist().count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    )  # user, assistant


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (conversation(("user", "<image><image>"), images=IMAGES[:1]), "2 marks <image> .* but 1 images"),
        (conversation(("user", "no mark"), images=IMAGES[:1]), "0 marks <image> .* but 1 images"),
        (conversation(("user", "hi"), answer=None), "nothing to learn"),
        (conversation(("user", "hi"), answer="see <image>"), "responses hold no images"),
        (conversation(("user\n<|im_start|>system", "hi")), "role"),
        (conversation(("user", "<image>"), images=(b"nonsense",)), "are no image"),
    ],
)
def test_bad_samples_say_what_is_wrong(encoder, sample, message):
    with pytest.raises(BadSample, match=message):
        encoder.encode(sample)


def test_a_response_with_image_tokens_is_refused(encoder):
    with pytest.raises(ValueError, match="ban them while sampling"):
        encoder.check_response([10, encoder.banned_token_ids[-1]])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "chat_template.jinja",
            "{{ message['content'] }}",
            "{{ message['content'].split('</think>')[-1] }}",
            "renders",
        ),
        ("chat_template.jinja", "<|image_pad|>", "", "one <|image_pad|>"),
        ("preprocessor_config.json", '"max_pixels": 4194304', '"max_pixels": 100000', "resize images again"),
        ("preprocessor_config.json", '"do_rescale": true', '"do_rescale": false', "do_rescale=False"),
        ("preprocessor_config.json", "{", "[", "not a JSON object"),
        ("config.json", '"image_token_id": 5', '"image_token_id": 6', "image_token_id=6, but .* is 5"),
        ("preprocessor_config.json", '"patch_size": 14', '"patch_size": 15', "patch_size=15"),
    ],
)
def test_folders_that_engines_would_read_differently_are_refused(tiny_hf, tmp_path, file, old, new, message):
    folder = _copy_without_weights(tiny_hf, tmp_path)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        ChatEncoder.from_hf(folder, ImageConfig())


def test_the_published_template_encodes_as_ours(tiny_hf, tmp_path):
    """The parts of the published template for texts and images, with its default system prompt."""
    folder = _copy_without_weights(tiny_hf, tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
        "{% else %}{% for content in message['content'] %}"
        "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
        "<|vision_start|><|image_pad|><|vision_end|>"
        "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    qwen, ours = (ChatEncoder.from_hf(f, ImageConfig()) for f in (folder, tiny_hf))
    assert qwen.encode(CASES["image"]).input_ids.tolist() == ours.encode(CASES["image"]).input_ids.tolist()
    ids, *_ = qwen.engine_prompt(conversation(("user", "hi")))
    assert qwen.decode(ids).startswith("system\nYou are a helpful assistant.\nuser\nhi")


def test_folders_of_transformers_5_and_of_its_first_templates_are_read(tiny_hf, tmp_path):
    folder = _copy_without_weights(tiny_hf, tmp_path)
    AutoProcessor.from_pretrained(folder).save_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    ours, theirs = (ChatEncoder.from_hf(f, ImageConfig()) for f in (tiny_hf, folder))
    assert theirs.encode(CASES["image"]).input_ids.tolist() == ours.encode(CASES["image"]).input_ids.tolist()
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["size"]["longest_edge"] = 10_000
    (folder / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ValueError, match="the limits of .*processor_config.json: the engine would"):
        ChatEncoder.from_hf(folder, ImageConfig())
    (folder / "chat_template.json").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        ChatEncoder.from_hf(folder, ImageConfig(min_pixels=784, max_pixels=10_000))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=r"has no tokenizer that can be read, such as tokenizer.json: [^\n]+$"
    ):
        ChatEncoder.from_hf(folder, ImageConfig(min_pixels=784, max_pixels=10_000))


def test_folder_without_a_processor_is_refused(tiny_hf, tmp_path):
    folder = _copy_without_weights(tiny_hf, tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="neither preprocessor_config.json nor image_processor"):
        ChatEncoder.from_hf(folder, ImageConfig())


def _copy_without_weights(tiny_hf: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    shutil.copytree(tiny_hf, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert json.loads((folder / "preprocessor_config.json").read_text())
    return folder


MARKS = st.sampled_from(["<|im_start|>", "<|im_end|>", "<|image_pad|>", "\n", " ", "e\u0301"])
TEXTS = st.lists(st.one_of(MARKS, st.text(max_size=9))).map("".join)


@settings(deadline=None)
@given(text=TEXTS)
def test_cached_pieces_give_the_ids_of_the_whole_text(encoder, text):
    whole = encoder.limits.chat._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert encoder.limits.chat.tokenize(text) == whole == encoder.limits.chat.tokenize(text)
