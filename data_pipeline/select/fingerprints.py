"""Fingerprints of samples, a file per shard: hashes and vectors, about a kilobyte a sample.

Shards are fingerprinted in any order and on any machine; near_duplicates.py compares the files in one pass.
Compared is the question: the users' text and the images, not the response.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from data_pipeline.encode.config import ImageConfig
from data_pipeline.errors import BadSample
from data_pipeline.files import atomic_writer, to_json
from data_pipeline.select.encoders import IMAGE_DIM, encode_image, load_text_encoder
from data_pipeline.types import FORMAT_PHRASES, IMAGE_MARK, VIDEO_MARK, Sample

_SYMBOL = re.compile(r"\d+(?:[.,]\d+)*|(?<![^\W_])[^\W\d_](?![^\W_])|[+*/=<>^%±×÷√∑∫≤≥≠°]|-(?![^\W\d_]{2})")
_NAMES = ("encoder", "ids", "sources")
"""Fields that are not arrays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprints:
    """Fingerprints of N samples, in their order. Two of 10^8 different 64-bit hashes are equal in 0.03 % of runs."""

    encoder: str  # of texts
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    content: np.ndarray  # [N] uint64, of the question's text, its images' pixels and its videos' times
    question: np.ndarray  # [N] uint64, the same for all responses that distillation kept of one; 0 of others
    symbols: np.ndarray  # [N] uint64, of the text's numbers, lone letters and operators, in order
    answer: np.ndarray  # [N] uint64, of the reference answer; 0 without one
    num_images: np.ndarray  # [N] int32, frames of videos among them
    text: np.ndarray  # [N, D] float16, rows of length 1
    image: np.ndarray  # [N, 143] float16, rows of length 1; 0 without images, or where one cannot be decoded

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: np.ndarray) -> Fingerprints:
        """Returns the fingerprints of `rows`."""
        named = {name: tuple(getattr(self, name)[row] for row in rows) for name in ("ids", "sources")}
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in _NAMES}
        return replace(self, **named, **arrays)

    def save(self, path: Path) -> None:
        """Writes an .npz file atomically; the same samples give the same bytes."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        names = {name: arrays.pop(name) for name in _NAMES}
        with atomic_writer(path, shared=True) as file:
            np.savez(file, names=np.frombuffer(to_json(names).encode(), dtype=np.uint8), **arrays)

    @classmethod
    def load(cls, path: Path) -> Fingerprints:
        """Reads what `save` wrote; raises ValueError if the file holds something else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = dict(arrays)
            names = json.loads(found.pop("names").tobytes())
            ids, sources = tuple(names["ids"]), tuple(names["sources"])
            return cls(**found, encoder=names["encoder"], ids=ids, sources=sources)
        except (OSError, KeyError, TypeError, ValueError, EOFError) as error:
            raise ValueError(f"{path} holds no fingerprints ({error!r}); delete it and run again") from error


def fingerprint_samples(samples: Iterable[Sample], text_encoder: str) -> Fingerprints:
    """Returns the fingerprints of samples whose texts fit in memory; images are decoded one sample at a time.

    An image that cannot be decoded is hashed by its bytes, and its sample has no near duplicates.
    """
    encode_texts = load_text_encoder(text_encoder)
    columns = list(zip(*map(_fingerprint, samples), strict=True)) or [()] * 6
    ids, sources, texts, hashes, num_images, images = columns
    content, question, symbols, answer = np.array(hashes, dtype=np.uint64).reshape(-1, 4).T.copy()
    return Fingerprints(
        encoder=text_encoder,
        ids=ids,
        sources=sources,
        content=content,
        question=question,
        symbols=symbols,
        answer=answer,
        num_images=np.array(num_images, dtype=np.int32),
        text=encode_texts(texts or [""])[: len(ids)].astype(np.float16),
        image=np.array(images, dtype=np.float16).reshape(-1, IMAGE_DIM),
    )


def _fingerprint(sample: Sample) -> tuple[str, str, str, tuple[int, int, int, int], int, np.ndarray]:
    """Returns id, source, text, hashes (content, question, symbols, answer), number of images, and their vector."""
    text, answer = question_text(sample), "".join(sample.answer.casefold().split())
    pixels, vector = _encode_images(sample.pictures)
    hashes = (
        hash_bytes(text.encode(), *pixels, *(video.times.encode() for video in sample.videos)),
        _question_hash(sample),
        hash_bytes(" ".join(_SYMBOL.findall(text.casefold())).encode()),
        hash_bytes(answer.encode()) if answer else 0,
    )
    return sample.id, sample.source, text, hashes, len(sample.pictures), vector


def question_text(sample: Sample) -> str:
    """Returns the users' turns without marks and the phrases that corpora append; white space is unified."""
    text = "\n".join(message.content for message in sample.messages if message.role == "user")
    text = FORMAT_PHRASES.sub(" ", text).replace(IMAGE_MARK, " ")
    text = text.replace(VIDEO_MARK, " ") if sample.videos else text
    return " ".join(unicodedata.normalize("NFC", text).split())


def _question_hash(sample: Sample) -> int:
    """Returns a hash of the question that a distilled sample answers, 0 of other samples."""
    if not {"question", "rollout", "teacher"} <= sample.metadata.keys():  # `question` alone may mean anything
        return 0
    return hash_bytes(sample.source.encode(), str(sample.metadata["question"]).encode())


def hash_images(images: tuple[bytes, ...]) -> list[int]:
    """Returns a hash of each image's size and pixels, or of its bytes where it cannot be decoded."""
    return [
        hash_bytes(_pixels(image) if isinstance(image, Image.Image) else image) for image in _decode(images)
    ]


def _encode_images(images: tuple[bytes, ...]) -> tuple[list[bytes], np.ndarray]:
    """Returns the bytes to hash of each image, and one vector [143] of all; 0 unless all can be decoded.

    The vector is the sum of the images' vectors, each rotated by its number, so that their order matters.
    """
    pixels, total, can_decode = list[bytes](), np.zeros(IMAGE_DIM, dtype=np.float32), True
    for number, image in enumerate(_decode(images)):
        if isinstance(image, bytes):
            pixels.append(image)
            can_decode = False
            continue
        pixels.append(_pixels(image))
        total += np.roll(encode_image(image), 7 * number)
    return pixels, total * can_decode / max(float(np.linalg.norm(total)), 1e-9)


def _decode(images: tuple[bytes, ...]) -> Iterator[Image.Image | bytes]:
    """Yields each image in its own size; its bytes where it cannot be decoded."""
    from data_pipeline.encode.images import MAX_SOURCE_PIXELS, load_image  # imports torch

    unscaled = ImageConfig(min_pixels=1, max_pixels=MAX_SOURCE_PIXELS)
    for data in images:
        try:
            yield load_image(data, unscaled, factor=1)
        except BadSample:
            yield data


def _pixels(image: Image.Image) -> bytes:
    return b"%d %d " % image.size + image.tobytes()


def hash_bytes(*parts: bytes) -> int:
    """Returns 64 bits, never 0."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return cast(int, int.from_bytes(digest.digest(), "little")) or 1
