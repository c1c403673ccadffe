"""Encodes messages and images as token ids, loss mask, positions and patches, with a model folder's chat template.

A response is encoded apart from its prompt, as an engine does, so that a response of a corpus and a sampled one have
the same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from data_pipeline.encode import images as vision
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.encode.processor import check_image_processor
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.errors import BadSample
from data_pipeline.files import parse_json
from data_pipeline.types import IMAGE_MARK, ROLES, Example, Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<|image_pad|>"
PIECES = 64
"""Number of texts between special tokens whose ids are cached."""


class ChatEncoder:
    """Encodes samples for one model. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image: ImageConfig) -> None:
        self._tokenizer = tokenizer
        self._image = image
        special = {number: t for number, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._special = {str(token): number for number, token in special.items()}
        plain = [
            re.escape(str(token))
            for token in special.values()
            if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        ]
        self._cuts = re.compile(f"({'|'.join(sorted(plain, key=len, reverse=True))})")
        self._tokenize_piece = lru_cache(maxsize=PIECES)(
            lambda piece: tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids
        )
        self.image_token_id = self._special[IMAGE_TOKEN]
        self.stop_token_id = self._special[str(tokenizer.eos_token)]
        self.pad_token_id = self._special[str(tokenizer.pad_token)]
        self.banned_token_ids = tuple(sorted(special.keys() - {self.stop_token_id, self.pad_token_id}))
        """Special tokens that a response must not hold: vision tokens and starts of turns."""

    @classmethod
    def from_hf(cls, folder: str | Path, image: ImageConfig) -> ChatEncoder:
        """Returns an encoder with the tokenizer and chat template of a Qwen2.5-VL folder.

        Raises:
            ValueError: with its template or image processor, trainer and engine would see different prompts.
        """
        check_image_processor(Path(folder), image)
        encoder = cls(_load_tokenizer(Path(folder)), image)
        encoder._check_template()
        return encoder

    def encode(self, sample: Sample) -> Example:
        """Encodes the conversation up to the end of its last turn, the assistant's, which alone is to be learned.

        Raises:
            BadSample: no assistant turn at the end, special tokens in a text, image marks that do not fit the
                images, or an undecodable image.
        """
        if not sample.messages or sample.messages[-1].role != "assistant":
            raise BadSample("text", "the last message is not the assistant's: nothing to learn from")
        response = sample.messages[-1].content
        self._check_text(response)
        if IMAGE_MARK in response:
            raise BadSample("text", f"{IMAGE_MARK} in the assistant's turn: responses hold no images")
        response_ids = [*self._tokenize(response), self.stop_token_id]
        return respond(self.encode_prompt(sample), response_ids, id=sample.id)

    def check_response(self, token_ids: Sequence[int]) -> None:
        """Raises ValueError when a sampled response holds tokens that only prompts may hold."""
        if banned := sorted(set(token_ids) & set(self.banned_token_ids)):
            raise ValueError(f"the response holds the special tokens {banned}; ban them while sampling")

    def engine_prompt(self, sample: Sample) -> tuple[list[int], list[Image.Image]]:
        """Returns the prompt's ids with one token per image, and the images in final size, as vLLM takes them."""
        has_response = bool(sample.messages) and sample.messages[-1].role == "assistant"
        messages = sample.messages[:-1] if has_response else sample.messages
        for message in messages:
            if message.role not in ROLES:
                raise BadSample("text", f"role {message.role!r} must be one of {ROLES}")
            self._check_text(message.content)
        marks = sum(message.content.count(IMAGE_MARK) for message in messages)
        if marks != len(sample.images):
            detail = f"{marks} marks {IMAGE_MARK} in the prompt, but {len(sample.images)} images"
            raise BadSample("text", detail)
        ids = self._tokenize(self._render(messages, add_generation_prompt=True))
        return ids, [vision.load_image(data, self._image) for data in sample.images]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of the ids, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def encode_prompt(self, sample: Sample) -> Example:
        """Encodes the conversation up to the assistant's response; nothing is to be learned. Raises as encode()."""
        prompt_ids, images = self.engine_prompt(sample)
        pixels, grids = vision.cut_patches(images)
        ids = np.array(prompt_ids)
        repeats = np.ones_like(ids)
        repeats[ids == self.image_token_id] = grids.numpy().prod(axis=1) // vision.MERGE**2
        input_ids = torch.from_numpy(ids.repeat(repeats))
        return Example(
            id=sample.id,
            input_ids=input_ids,
            loss_mask=torch.zeros(input_ids.numel()),
            position_ids=mrope_position_ids(
                input_ids, grids, image_token_id=self.image_token_id, spatial_merge_size=vision.MERGE
            ),
            pixels=pixels,
            image_grid_thw=grids,
        )

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": _parts(message.content)} for message in messages]
        render = partial(self._tokenizer.apply_chat_template, turns, tokenize=False)
        return str(render(add_generation_prompt=add_generation_prompt))

    def _tokenize(self, text: str) -> list[int]:
        """Returns the tokenizer's ids of `text`.

        A tokenizer cuts at plain special tokens and encodes the pieces independently, so the ids of pieces that
        repeat, such as the system prompt, can be cached.
        """
        ids: list[int] = []
        for piece in self._cuts.split(text):
            if piece in self._special:
                ids.append(self._special[piece])
            elif piece:
                ids.extend(self._tokenize_piece(piece))
        return ids

    def _check_text(self, text: str) -> None:
        """Raises BadSample for special tokens in a text, which would forge turns or images."""
        for token in self._special:
            if token in text:
                raise BadSample("text", f"holds the special token {token}; remove it from the data")

    def _check_template(self) -> None:
        """Raises ValueError unless the template puts a response, unchanged, between generation prompt and eos."""
        question = Message(role="user", content=f"{IMAGE_MARK}question")
        response = Message(role="assistant", content="<think>a</think><answer>b</answer>")
        prompt = self._render([question], add_generation_prompt=True)
        whole = self._render([question, response], add_generation_prompt=False)
        wanted = prompt + response.content + str(self._tokenizer.eos_token)
        if not whole.startswith(wanted):
            raise ValueError(
                f"the chat template renders\n{whole!r}\nwhich does not begin with\n{wanted!r}\n"
                "so an engine would see another conversation; use Qwen2.5-VL's template"
            )
        if self._tokenize(prompt).count(self.image_token_id) != 1:
            raise ValueError(f"the chat template does not turn an image into one {IMAGE_TOKEN}: {prompt!r}")


def _parts(content: str) -> str | list[dict[str, str]]:
    """Returns content in the form of chat templates: plain text, or a list of texts and images."""
    if IMAGE_MARK not in content:
        return content
    pieces = filter(None, re.split(f"({IMAGE_MARK})", content))
    return [{"type": "image"} if piece == IMAGE_MARK else {"type": "text", "text": piece} for piece in pieces]


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Returns the folder's tokenizer, with the chat template from wherever transformers saved it.

    Raises:
        ValueError: there is no template, or its tokens are not those of Qwen2.5-VL or of the folder's config.json.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = folder / "chat_template.json"  # saved with the processor by the first releases that had one
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = parse_json(template.read_bytes())["chat_template"]
    if tokenizer.chat_template is None:
        raise ValueError(f"{folder} has no chat template; add chat_template.jinja of Qwen2.5-VL")
    if None in (tokenizer.eos_token, tokenizer.pad_token) or IMAGE_TOKEN not in tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer of {folder} has eos_token={tokenizer.eos_token}, "
            f"pad_token={tokenizer.pad_token} and {len(tokenizer)} tokens; it must have both and "
            f"{IMAGE_TOKEN}, as Qwen2.5-VL's"
        )
    config, own = folder / "config.json", tokenizer.get_vocab()[IMAGE_TOKEN]
    named = parse_json(config.read_bytes()).get("image_token_id", own) if config.is_file() else own
    if named != own:
        raise ValueError(f"{config}: image_token_id={named}, but {IMAGE_TOKEN} of its tokenizer is {own}")
    return tokenizer
