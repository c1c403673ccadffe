"""The text of a model: special tokens, chat template and tokenizer of its folder. No image is read here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.errors import BadSample
from data_pipeline.files import parse_json
from data_pipeline.types import IMAGE_MARK, VIDEO_MARK, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
PIECES = 64
"""Number of texts between special tokens whose ids are cached."""


class ChatFormat:
    """Turns messages into token ids for one model. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        special = {number: t for number, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.special = {str(token): number for number, token in special.items()}
        """The ids of special tokens, which no text may hold."""
        plain = [
            re.escape(str(token))
            for token in special.values()
            if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        ]
        self._cuts = re.compile(f"({'|'.join(sorted(plain, key=len, reverse=True))})")
        self._tokenize_piece = lru_cache(maxsize=PIECES)(
            lambda piece: tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids
        )
        self.stop_token = str(tokenizer.eos_token)
        self.image_token_id = self.special[IMAGE_TOKEN]
        self.video_token_id = self.special.get(VIDEO_TOKEN, -1)
        self.stop_token_id = self.special[self.stop_token]
        self.pad_token_id = self.special[str(tokenizer.pad_token)]
        self.banned_token_ids = tuple(sorted(special.keys() - {self.stop_token_id, self.pad_token_id}))
        """Special tokens that a response must not hold: vision tokens and starts of turns."""

    @classmethod
    def from_hf(cls, folder: str | Path) -> ChatFormat:
        """Returns the format of a model's folder.

        Raises:
            ValueError: with its tokenizer or template, trainer and engine would see different prompts.
        """
        chat = cls(_load_tokenizer(Path(folder)))
        chat._check_template()
        return chat

    def render(self, messages: Sequence[Message], *, has_videos: bool = False) -> str:
        """Returns the template's text of the messages up to where the assistant begins, with a token for each image.

        Args:
            has_videos: and for each video; without it, their mark is text.

        Raises:
            BadSample: the template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            return self._render(messages, add_generation_prompt=True, has_videos=has_videos)
        except TemplateError as error:
            raise BadSample("text", f"the chat template refuses the turns: {error}") from error

    def tokenize(self, text: str) -> list[int]:
        """Returns the tokenizer's ids of `text`.

        A tokenizer cuts at plain special tokens and encodes the pieces independently, so the ids of pieces that
        repeat, such as the system prompt, can be cached.
        """
        ids: list[int] = []
        for piece in self._cuts.split(text):
            if piece in self.special:
                ids.append(self.special[piece])
            elif piece:
                ids.extend(self._tokenize_piece(piece))
        return ids

    def mark_responses(self, text: str, messages: Sequence[Message]) -> list[bool]:
        """Returns for each id of tokenize(text), of these rendered messages, if it is of the assistant's turns.

        A turn's tokens are those that begin within its text, and the token that ends it.

        Raises:
            BadSample: the template does not give a turn as it is, so its tokens are not those of a response.
        """
        ranges = list(self._find_responses(text, messages))
        starts: list[int] = []
        pieces = self._cuts.split(text)
        for piece, place in zip(pieces, accumulate(map(len, pieces), initial=0), strict=False):
            if piece in self.special:
                starts.append(place)
            elif piece:
                found = self._tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False)
                starts += [place + first for first, _ in found.offsets]
        return [any(first <= start < end for first, end in ranges) for start in starts]

    def count_at_least(self, text: str) -> int:
        """Returns a number of tokens that `text` has at least, without tokenizing it: 0.1 s for 10 MB.

        A token of n bytes is n times 1/n. So each byte counts as 1/n, where n is the length of the longest token
        that holds it. It is 0 for tokenizers that do not work on bytes.
        """
        if self._shares is None:
            return 0
        if self._tokenizer.backend_tokenizer.normalizer is not None:  # the one that _shares allows
            text = unicodedata.normalize("NFC", text)
        data = np.frombuffer(text.encode(), np.uint8)
        return int(np.ceil(np.bincount(data, minlength=256) @ self._shares - 1e-6))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of the ids, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def describe(self) -> dict[str, object]:
        """Returns what decides the tokens of a text, by name."""
        return {
            "tokenizer": self._tokenizer.backend_tokenizer.to_str(),
            "chat template": self._tokenizer.chat_template,
            "stop token": self.stop_token_id,
            "pad token": self.pad_token_id,
            "image token": self.image_token_id,
            "video token": self.video_token_id,
            "banned tokens": list(self.banned_token_ids),
        }

    def name_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Returns the text of each id by itself, also of special tokens; of part of a character a replacement mark."""
        return [str(self._tokenizer.decode([number])) for number in token_ids]

    @cached_property
    def _shares(self) -> np.ndarray | None:
        """[256], for each byte 1 / the length of the longest token that holds it, 0 where none does."""
        added = {str(token) for token in self._tokenizer.added_tokens_decoder.values()}
        words = self._tokenizer.get_vocab().keys() - added
        normalizer = self._tokenizer.backend_tokenizer.normalizer
        if type(normalizer).__name__ not in ("NFC", "NoneType") or not set("".join(words)) <= _BYTES.keys():
            return None
        longest = np.zeros(256)
        for data in [bytes(map(_BYTES.__getitem__, word)) for word in words] + [
            token.encode() for token in added - self.special.keys()
        ]:
            places = np.frombuffer(data, np.uint8)
            longest[places] = np.maximum(longest[places], len(data))
        return np.divide(1, longest, out=np.zeros(256), where=longest > 0)

    @cached_property
    def _response_start(self) -> str:
        """The template's text before a response, such as "<|im_start|>assistant" and a line break."""
        question = [Message(role="user", content="question")]
        before, after = (self._render(question, add_generation_prompt=flag) for flag in (False, True))
        return after.removeprefix(before)

    def _find_responses(self, text: str, messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
        """Yields first and end of the text of each turn of the assistant, with the token that ends it."""
        end = 0
        for message in messages:
            if message.role != "assistant":
                continue
            wanted = self._response_start + message.content + self.stop_token
            place = text.find(self._response_start, end)
            end = place + len(wanted)
            if text[place:end] != wanted:
                raise BadSample(
                    "text",
                    "the chat template changes an earlier turn of the assistant; learn with loss_on=last",
                )
            yield place + len(self._response_start), end

    def _render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, has_videos: bool = False
    ) -> str:
        marks = _MARKS if has_videos else {IMAGE_MARK: "image"}
        turns = [{"role": message.role, "content": _parts(message.content, marks)} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def _check_template(self) -> None:
        """Raises ValueError unless the template puts a response, unchanged, between generation prompt and eos."""
        question = Message(role="user", content=f"{IMAGE_MARK}question")
        response = Message(role="assistant", content="<think>a</think><answer>b</answer>")
        prompt = self._render([question], add_generation_prompt=True)
        whole = self._render([question, response], add_generation_prompt=False)
        wanted = prompt + response.content + self.stop_token
        if not whole.startswith(wanted):
            raise ValueError(
                f"the chat template renders\n{whole!r}\nwhich does not begin with\n{wanted!r}\n"
                "so an engine would see another conversation; use the published template of the model"
            )
        if self.tokenize(prompt).count(self.image_token_id) != 1:
            raise ValueError(f"the chat template does not turn an image into one {IMAGE_TOKEN}: {prompt!r}")


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte of each character in which byte-level tokenizers write their tokens."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # as the character of the same number
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


_MARKS = {IMAGE_MARK: "image", VIDEO_MARK: "video"}


def _parts(content: str, marks: Mapping[str, str]) -> str | list[dict[str, str]]:
    """Returns content in the form of chat templates: plain text, or a list of texts, images and videos."""
    if not any(mark in content for mark in marks):
        return content
    pieces = filter(None, re.split(f"({'|'.join(marks)})", content))
    return [{"type": marks[piece]} if piece in marks else {"type": "text", "text": piece} for piece in pieces]


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Returns the folder's tokenizer, with the chat template from wherever transformers saved it.

    Raises:
        ValueError: tokenizer or template are missing, or the tokens are not those of a Qwen-VL or of config.json.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise all sorts, some in several lines
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder} has no tokenizer that can be read, such as tokenizer.json: {reason}"
        ) from error
    template = folder / "chat_template.json"  # saved with the processor by the first releases that had one
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = parse_json(template.read_bytes())["chat_template"]
    if tokenizer.chat_template is None:
        raise ValueError(f"{folder} has no chat template; add the model's chat_template.jinja")
    if None in (tokenizer.eos_token, tokenizer.pad_token) or IMAGE_TOKEN not in tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer of {folder} has eos_token={tokenizer.eos_token}, "
            f"pad_token={tokenizer.pad_token} and {len(tokenizer)} tokens; it must have both and "
            f"{IMAGE_TOKEN}, as Qwen-VL's"
        )
    config, own = folder / "config.json", tokenizer.get_vocab()[IMAGE_TOKEN]
    named = parse_json(config.read_bytes()).get("image_token_id", own) if config.is_file() else own
    if named != own:
        raise ValueError(f"{config}: image_token_id={named}, but {IMAGE_TOKEN} of its tokenizer is {own}")
    return tokenizer
