"""What can be answered without looking: the most frequent answer to each question text, and to each kind of question.

Both are counted over training samples, of which one is in memory at a time; only what is asked is counted. The same
pass finds questions and images that were trained on: the same text, and the same image files byte for byte.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from data_pipeline.errors import BadSample
from data_pipeline.select.fingerprints import hash_bytes, question_text
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import ShardIndex, load_samples
from data_pipeline.types import Sample


@dataclass(frozen=True, kw_only=True)
class Guess:
    """Holds the most frequent training answers to one question, and whether it was trained on."""

    by_text: str  # the most frequent answer to questions of this text, else by_kind
    by_kind: (
        str  # the most frequent answer to questions of this kind, else to all; "" without training answers
    )
    image_seen: bool  # one of its images was trained on
    question_seen: bool  # its text was trained on with all of its images


@dataclass(kw_only=True)
class _Asked:
    """Text, kind and images of a question, as hashes."""

    text: int
    kind: str
    images: tuple[int, ...]

    @property
    def whole(self) -> tuple[int, ...]:
        return (self.text, *self.images)


@dataclass(kw_only=True)
class _Counts:
    """Counts over training samples, of what is asked."""

    texts: dict[int, Counter[str]]
    kinds: dict[str, Counter[str]]
    all: Counter[str] = field(default_factory=Counter)
    images: set[int] = field(default_factory=set)  # of the questions and of training samples
    wholes: set[tuple[int, ...]] = field(default_factory=set)
    samples: int = 0
    is_complete: bool = True

    def add(self, answer: str, asked: _Asked) -> None:
        """Counts the answer to a training question; samples without one count as nothing."""
        tables = (self.texts.get(asked.text), self.kinds.get(asked.kind), self.all)
        for counts in tables if answer else ():
            if counts is not None:
                counts[answer] += 1


def guess_answers(
    questions: Sequence[Sample], train_shards: Sequence[str], *, limit: int, seed: int = 0
) -> tuple[list[Guess], int, bool]:
    """Returns a guess for each question, the number of training samples read, and whether these are all.

    Args:
        limit: most samples that are read, of shards in a random order.

    Raises:
        ValueError: a folder of `train_shards` holds no shards.
    """
    asked = [_describe(question) for question in questions]
    found = _Counts(
        texts={each.text: Counter() for each in asked}, kinds={each.kind: Counter() for each in asked}
    )
    wanted_images = {image for each in asked for image in each.images}
    wanted_wholes = {each.whole for each in asked}
    for sample in _read_training(train_shards, found, limit, seed):
        seen = _describe(sample)
        found.images |= wanted_images.intersection(seen.images)
        if seen.whole in wanted_wholes:
            found.wholes.add(seen.whole)
        found.add(sample.answer.strip(), seen)
    return [_guess(each, found) for each in asked], found.samples, found.is_complete


def _describe(sample: Sample) -> _Asked:
    return _Asked(
        text=hash_bytes(question_text(sample).encode()),
        kind=str(sample.metadata.get("kind", "")),
        images=(*map(hash_bytes, sample.images), *(hash_bytes(*video.frames) for video in sample.videos)),
    )


def _guess(asked: _Asked, found: _Counts) -> Guess:
    by_kind = _most_frequent(found.kinds[asked.kind]) or _most_frequent(found.all)
    return Guess(
        by_text=_most_frequent(found.texts[asked.text]) or by_kind,
        by_kind=by_kind,
        image_seen=not found.images.isdisjoint(asked.images),
        question_seen=asked.whole in found.wholes,
    )


def _most_frequent(counts: Counter[str]) -> str:
    """Returns the most frequent answer, of equals the first in the alphabet; "" of none."""
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")


def _read_training(places: Iterable[str], found: _Counts, limit: int, seed: int) -> Iterator[Sample]:
    """Yields at most `limit` training samples, and counts them in `found`; unreadable ones are left out."""
    indexes: dict[str, ShardIndex] = {}
    for place in places:
        index = load_samples(place)
        indexes.setdefault(index.digest, index)  # SFT and RL often share their shards
    shards = [(index, number) for index in indexes.values() for number in range(len(index.shards))]
    random.Random(seed).shuffle(shards)

    def skip(_name: str, _error: BadSample) -> None: ...

    for index, number in shards:
        for sample in read_shard(index, number, skip):
            if found.samples == limit:
                found.is_complete = False
                return
            found.samples += 1
            yield sample
