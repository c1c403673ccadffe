"""Messages and images -> token ids, loss mask, positions and patches, by a model folder's own chat template.

A response is encoded apart from its prompt: the ids are those an engine is asked with and answers with, so
that learning from a given answer and from a sampled one meet the same tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from data_pipeline.encode import images as vision
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.encode.prompt_sharing import respond
from data_pipeline.errors import BadSample
from data_pipeline.types import IMAGE_MARK, ROLES, Example, Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<|image_pad|>"
PIECES = 64
"""Texts between special tokens whose ids are remembered."""


class ChatEncoder:
    """Encodes samples for one model. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image: ImageConfig) -> None:
        self._tokenizer = tokenizer
        self._image = image
        self._special = {
            str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        plain = [
            re.escape(str(token))
            for token in tokenizer.added_tokens_decoder.values()
            if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        ]
        self._cuts = re.compile(f"({'|'.join(sorted(plain, key=len, reverse=True))})")
        self._tokenize_piece = lru_cache(maxsize=PIECES)(
            lambda piece: tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids
        )
        self.image_token_id = self._special[IMAGE_TOKEN]
        self.stop_token_id = self._special[str(tokenizer.eos_token)]
        self.pad_token_id = self._special[str(tokenizer.pad_token)]
        self.banned_token_ids = tuple(
            sorted(set(self._special.values()) - {self.stop_token_id, self.pad_token_id})
        )
        """Special tokens that a rollout must never hold: vision tokens and starts of turns."""

    @classmethod
    def from_hf(cls, folder: str | Path, image: ImageConfig) -> ChatEncoder:
        """Use the tokenizer and chat template of a Qwen2.5-VL folder.

        Raises:
            ValueError: its template or image processor would not do what trainer and engine agree on.
        """
        from transformers import AutoTokenizer

        _check_processor(Path(folder), image)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if (
            tokenizer.eos_token is None
            or tokenizer.pad_token is None
            or IMAGE_TOKEN not in tokenizer.get_vocab()
        ):
            raise ValueError(
                f"the tokenizer of {folder} has eos_token={tokenizer.eos_token}, "
                f"pad_token={tokenizer.pad_token} and {len(tokenizer)} tokens; it must have both and "
                f"{IMAGE_TOKEN}, as Qwen2.5-VL's"
            )
        encoder = cls(tokenizer, image)
        encoder._check_template()
        return encoder

    def encode(self, sample: Sample) -> Example:
        """The conversation up to the end of its last turn, the assistant's, which alone is to be learned.

        Raises:
            BadSample: no assistant turn at the end, special tokens in a text, image marks that do not fit the
                images, or an undecodable image.
        """
        if not sample.messages or sample.messages[-1].role != "assistant":
            raise BadSample("text", "the last message is not the assistant's: nothing to learn from")
        answer = sample.messages[-1].content
        self._check_text(answer)
        if IMAGE_MARK in answer:
            raise BadSample("text", f"{IMAGE_MARK} in the assistant's turn: answers hold no images")
        return respond(
            self.encode_prompt(sample), [*self._tokenize(answer), self.stop_token_id], id=sample.id
        )

    def check_response(self, token_ids: Sequence[int]) -> None:
        """Raise ValueError when a sampled response holds tokens that only prompts may hold."""
        banned = set(token_ids) & set(self.banned_token_ids)
        if banned:
            raise ValueError(
                f"the response holds the special tokens {sorted(banned)}; ban them while sampling"
            )

    def engine_prompt(self, sample: Sample) -> tuple[list[int], list[Image.Image]]:
        """Prompt ids with one image token per image, and the images in final size, as vLLM takes them."""
        ids = self._prompt_ids(sample)
        return ids, [vision.load_image(data, self._image) for data in sample.images]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def encode_prompt(self, sample: Sample) -> Example:
        """The conversation up to where the assistant begins to answer; nothing of it is to be learned.

        Raises:
            BadSample: as encode.
        """
        prompt_ids, images = self.engine_prompt(sample)
        pixels, grids = vision.patches(images)
        ids = np.array(prompt_ids)
        repeats = np.ones_like(ids)
        repeats[ids == self.image_token_id] = grids.numpy().prod(axis=1) // vision.MERGE**2
        input_ids = torch.from_numpy(ids.repeat(repeats))
        position_ids = mrope_position_ids(
            input_ids, grids, image_token_id=self.image_token_id, spatial_merge_size=vision.MERGE
        )
        return Example(
            id=sample.id,
            input_ids=input_ids,
            loss_mask=torch.zeros(input_ids.numel()),
            position_ids=position_ids,
            pixels=pixels,
            image_grid_thw=grids,
        )

    def _prompt_ids(self, sample: Sample) -> list[int]:
        messages = sample.messages
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        for message in messages:
            if message.role not in ROLES:
                raise BadSample("text", f"role {message.role!r} must be one of {ROLES}")
            self._check_text(message.content)
        marks = sum(message.content.count(IMAGE_MARK) for message in messages)
        if marks != len(sample.images):
            raise BadSample(
                "text", f"{marks} marks {IMAGE_MARK} in the prompt, but {len(sample.images)} images"
            )
        return self._tokenize(self._render(messages, add_generation_prompt=True))

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": _parts(message.content)} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def _tokenize(self, text: str) -> list[int]:
        """The tokenizer's ids of `text`.

        It cuts at plain special tokens and takes the pieces by themselves, so pieces that come again and again,
        such as the system prompt, need not be tokenised again.
        """
        ids: list[int] = []
        for piece in self._cuts.split(text):
            if piece in self._special:
                ids.append(self._special[piece])
            elif piece:
                ids.extend(self._tokenize_piece(piece))
        return ids

    def _check_text(self, text: str) -> None:
        """Special tokens written out in a text would forge turns or images."""
        for token in self._special:
            if token in text:
                raise BadSample("text", f"holds the special token {token}; remove it from the data")

    def _check_template(self) -> None:
        """The template must put an answer, unaltered, right behind the generation prompt, and then eos."""
        question = Message(role="user", content=f"{IMAGE_MARK}question")
        answer = Message(role="assistant", content="<think>a</think><answer>b</answer>")
        prompt = self._render([question], add_generation_prompt=True)
        whole = self._render([question, answer], add_generation_prompt=False)
        wanted = prompt + answer.content + str(self._tokenizer.eos_token)
        if not whole.startswith(wanted):
            raise ValueError(
                f"the chat template renders\n{whole!r}\nwhich does not begin with\n{wanted!r}\n"
                "so that an engine would see another conversation; use Qwen2.5-VL's template"
            )
        if self._tokenize(prompt).count(self.image_token_id) != 1:
            raise ValueError(f"the chat template does not turn an image into one {IMAGE_TOKEN}: {prompt!r}")


def _parts(content: str) -> str | list[dict[str, str]]:
    """Content in the form chat templates know: plain text, or text and images in turn."""
    first, *rest = content.split(IMAGE_MARK)
    if not rest:
        return content
    parts = [{"type": "text", "text": first}]
    for text in rest:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]


def _check_processor(folder: Path, image: ImageConfig) -> None:
    """The engine uses the folder's own image processor: it must find nothing to change in our images."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a complete Qwen2.5-VL folder")
    processor = json.loads(path.read_text())
    size = processor.get("size") or {}
    smallest = processor.get("min_pixels") or size.get("shortest_edge") or 0
    largest = processor.get("max_pixels") or size.get("longest_edge") or image.max_pixels
    if not smallest <= image.min_pixels <= image.max_pixels <= largest:
        raise ValueError(
            f"image.min_pixels={image.min_pixels} and image.max_pixels={image.max_pixels} must lie between "
            f"{smallest} and {largest}, the limits of {path}: the engine would resize images again"
        )
    wanted = {
        "patch_size": vision.PATCH,
        "merge_size": vision.MERGE,
        "temporal_patch_size": vision.TEMPORAL,
        "image_mean": list(vision.MEAN),
        "image_std": list(vision.STD),
    }
    for name, value in wanted.items():
        if processor.get(name, value) != value:
            raise ValueError(f"{path}: {name}={processor[name]}, but Qwen2.5-VL's processor has {value}")
