"""Samples -> what finding duplicates needs of them, shard by shard: hashes and vectors, a kilobyte each.

Shards are fingerprinted in any order and on any machine; `dedup.find_duplicates` then reads the files in one pass.
What counts is the question: the users' text and the images. Responses are not compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

import numpy as np

from data_pipeline.errors import BadSample
from data_pipeline.files import atomic_writer
from data_pipeline.select.encoders import Encoders
from data_pipeline.types import FORMAT_PHRASES, IMAGE_MARK, Sample

_SYMBOL = re.compile(r"\d+(?:[.,]\d+)*|(?<![^\W_])[^\W\d_](?![^\W_])|[+*/=<>^%±×÷√∑∫≤≥≠°]|-(?![^\W\d_]{2})")


NAMES = ("encoders", "ids", "sources")
"""Fields that are no arrays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprints:
    """What is known of N samples, in their order. Hashes have 64 bits; two of 10^8 meet by chance in 0.03 % of runs."""

    encoders: str  # their name
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    content: np.ndarray  # [N] uint64, of the question's text and its images' pixels
    question: np.ndarray  # [N] uint64, the same for all answers that distillation kept of one; 0 of others
    symbols: np.ndarray  # [N] uint64, of the text's numbers, lone letters and operators, in order
    answer: np.ndarray  # [N] uint64, of the reference answer; 0 without one
    num_images: np.ndarray  # [N] int32
    text: np.ndarray  # [N, D] float16, rows of length 1
    image: np.ndarray  # [N, D] float16, rows of length 1, or 0 without a readable image

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: np.ndarray) -> Fingerprints:
        """Those of `rows`."""
        named = {name: tuple(getattr(self, name)[row] for row in rows) for name in ("ids", "sources")}
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in NAMES}
        return replace(self, **named, **arrays)

    def save(self, path: Path) -> None:
        """Write an .npz that appears when it is whole; the same samples give the same bytes."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        names = {name: arrays.pop(name) for name in NAMES}
        with atomic_writer(path, shared=True) as file:
            np.savez(file, names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8), **arrays)

    @classmethod
    def load(cls, path: Path) -> Fingerprints:
        """Read what `save` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = dict(arrays)
            names = json.loads(found.pop("names").tobytes())
            return cls(
                **found,
                encoders=names["encoders"],
                ids=tuple(names["ids"]),
                sources=tuple(names["sources"]),
            )
        except (OSError, KeyError, TypeError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} holds no fingerprints ({error!r}); delete it and run the command again"
            ) from error


def fingerprint_shard(samples: Iterable[Sample], encoders: Encoders) -> Fingerprints:
    """Fingerprints of samples that fit in memory without their images; those are decoded one sample at a time.

    An image that cannot be decoded counts by its bytes, and is near no other.
    """
    ids, sources, texts, hashes, counts, images = [], [], [], [], [], []
    for sample in samples:
        text = question_text(sample)
        pixels, vector = _see(sample.images, encoders)
        ids.append(sample.id)
        sources.append(sample.source)
        texts.append(text)
        counts.append(len(sample.images))
        images.append(vector)
        hashes.append(
            (
                _hash(text.encode(), *pixels),
                _asked(sample),
                _hash(" ".join(_SYMBOL.findall(text.casefold())).encode()),
                _hash("".join(sample.answer.casefold().split()).encode()) if sample.answer.strip() else 0,
            )
        )
    content, question, symbols, answer = np.array(hashes, dtype=np.uint64).reshape(-1, 4).T.copy()
    nothing = np.zeros(encoders.image_dim, dtype=np.float32)
    return Fingerprints(
        encoders=encoders.name,
        ids=tuple(ids),
        sources=tuple(sources),
        content=content,
        question=question,
        symbols=symbols,
        answer=answer,
        num_images=np.array(counts, dtype=np.int32),
        text=encoders.texts(texts or [""])[: len(ids)].astype(np.float16),
        image=np.array([nothing if v is None else v for v in images], dtype=np.float16).reshape(
            len(ids), encoders.image_dim
        ),
    )


def question_text(sample: Sample) -> str:
    """The users' turns without image marks, what corpora append to questions, and differences of white space."""
    text = "\n".join(message.content for message in sample.messages if message.role == "user")
    text = FORMAT_PHRASES.sub(" ", text).replace(IMAGE_MARK, " ")
    return " ".join(unicodedata.normalize("NFC", text).split())


def _asked(sample: Sample) -> int:
    """Hash of the question that a distilled sample answers, 0 of others: metadata `question` alone says nothing."""
    if not {"question", "rollout", "teacher"} <= sample.metadata.keys():
        return 0
    return _hash(sample.source.encode(), str(sample.metadata["question"]).encode())


def _see(images: tuple[bytes, ...], encoders: Encoders) -> tuple[list[bytes], np.ndarray | None]:
    """What is hashed of each image, and one vector of all, None if not all can be decoded.

    Images are added up, each turned by its number: the same images in another order are not the same.
    """
    from data_pipeline.config import ImageConfig
    from data_pipeline.encode.images import MAX_SOURCE_PIXELS, load_image

    as_they_are = ImageConfig(min_pixels=1, max_pixels=MAX_SOURCE_PIXELS)
    hashed, total = [], None
    is_whole = bool(images)
    for number, data in enumerate(images):
        try:
            image = load_image(data, as_they_are, factor=1)
        except BadSample:
            hashed.append(data)
            is_whole = False
            continue
        hashed.append(b"%d %d " % image.size + image.tobytes())
        vector = np.roll(encoders.images([image])[0], 7 * number)
        total = vector if total is None else total + vector
    if total is None or not is_whole:
        return hashed, None
    return hashed, total / max(float(np.linalg.norm(total)), 1e-9)


def _hash(*parts: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return cast(int, int.from_bytes(digest.digest(), "little")) or 1
