"""Which samples are there twice, or stand in a benchmark: one pass over fingerprints, in the order of the corpora.

A sample is compared with those that were kept before it, and dropped when one of them is the same (`exact`: text and
pixels) or near; so nothing is dropped for something that is dropped itself. Answers to one question (metadata
`question`) are no duplicates of each other: the first of them is judged, and the others share its fate.
Legend: N samples of a part, C candidates for one of them, D numbers of a joined vector (text, then images).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.select.config import DedupConfig
from data_pipeline.select.drop_lists import Duplicate, Kind
from data_pipeline.select.fingerprints import Fingerprints
from data_pipeline.select.neighbours import Neighbours

CANDIDATES = 8
"""Nearest kept samples that are looked at; the nearest by the joined vectors may fail on symbols or answer."""
BLOCK = 2048
"""Rows of a part whose cosines with the rows before them are held at once."""
SLACK = 0.002
"""By how much a cosine of float16 vectors may be off, so that nothing at the threshold is missed."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The fingerprints of one folder of shards."""

    digest: str  # of its ShardIndex: which data it is, wherever it lies
    parts: tuple[Path, ...]  # one .npz per shard


def find_duplicates(
    corpora: Sequence[Corpus],
    config: DedupConfig,
    against: Sequence[Corpus] = (),
    *,
    share: int = 0,
    num_shares: int = 1,
) -> Iterator[Duplicate]:
    """Each duplicate in `corpora` by the rule of `config`, and what is near a sample of `against`.

    Where near samples must agree in their symbols, samples fall apart into `num_shares` shares by them that never
    meet: machines can each take one `share` of the same files, and together find what one alone does. Questions
    without any symbol all fall into one share.

    Raises:
        ValueError: a file holds no fingerprints, or those of other encoders; or shares without `same_symbols`.
    """
    if num_shares > 1 and not config.same_symbols:
        raise ValueError(
            f"num_shares={num_shares} needs dedup.same_symbols, which says what never meets; use 1 share"
        )
    benchmarks, shared = _Kept(config), _Kept(config)
    for corpus in against:
        for path in corpus.parts:
            benchmarks.add(_load(path, share, num_shares))
    earlier: list[_Kept] = []
    judge = _Judge(config, benchmarks)
    for corpus in tqdm(corpora, desc="compare", unit=" corpora", disable=None):
        own = shared if config.scope == "both" else _Kept(config)
        searched = earlier if config.scope == "across" else [own]
        for number, path in enumerate(corpus.parts):
            for found in judge.judge(_load(path, share, num_shares), own, searched):
                yield replace(found, corpus=corpus.digest, shard=number)
        if config.scope == "across":
            earlier.append(own)


def _load(path: Path, share: int, num_shares: int) -> _Part:
    prints = Fingerprints.load(path)
    rows = np.flatnonzero(prints.symbols % num_shares == share)
    return _Part(prints if num_shares == 1 else prints.at(rows), rows)


class _Part:
    """Fingerprints with their joined vectors [N, D] float32: text and images of equal weight, length 1.

    `rows` [N] are their numbers among all of the shard.
    """

    def __init__(self, prints: Fingerprints, rows: np.ndarray) -> None:
        self.prints, self.rows = prints, rows
        has_image = prints.image.any(axis=1, keepdims=True)
        weight = np.where(has_image, np.float32(0.5**0.5), np.float32(1))
        both = np.concatenate([prints.text, prints.image], axis=1)
        self.joined = both.astype(np.float32) * weight
        self.facts = np.stack([prints.symbols, prints.answer, prints.num_images.astype(np.uint64)], axis=1)

    def __len__(self) -> int:
        return len(self.prints)


class _Kept:
    """Samples that were kept: hashes, vectors, ids and facts (symbols, answer, number of images) by key."""

    def __init__(self, config: DedupConfig) -> None:
        self._config = config
        self._index: Neighbours | None = None
        self._encoders = ""
        self._facts = array("Q")
        self.ids: list[str] = []
        self.by_content: dict[int, int] = {}

    def add(self, part: _Part, mask: np.ndarray | None = None) -> None:
        """Add the samples of a part where `mask` [N] is true, or all."""
        chosen = np.arange(len(part)) if mask is None else np.flatnonzero(mask)
        index = self._checked(part)
        first = len(self.ids)
        index.add(part.joined[chosen])
        self._facts.frombytes(part.facts[chosen].tobytes())
        self.ids += [part.prints.ids[row] for row in chosen]
        for key, content in enumerate(part.prints.content[chosen].tolist(), first):
            self.by_content.setdefault(content, key)

    def find(self, part: _Part, least: float) -> list[np.ndarray]:
        """Per sample of the part, the keys of its candidates: kept samples of about `least` cosine or more."""
        keys, cosines = self._checked(part).find(part.joined, CANDIDATES)
        return [keys[row][cosines[row] >= least - SLACK] for row in range(len(part))]

    def facts(self, keys: np.ndarray) -> np.ndarray:
        """[C, 3] of `keys` [C]."""
        return np.frombuffer(self._facts, dtype=np.uint64).reshape(-1, 3)[keys]

    def joined(self, keys: np.ndarray) -> np.ndarray:
        """Vectors [C, D] of `keys` [C]."""
        assert self._index
        return self._index.vectors(keys).astype(np.float32)

    def _checked(self, part: _Part) -> Neighbours:
        config, name = self._config, part.prints.encoders
        if self._index is None:
            self._encoders = name
            self._index = Neighbours(
                part.joined.shape[1], exact_below=config.exact_below, threads=config.threads
            )
        if name != self._encoders:
            raise ValueError(
                f"fingerprints of the encoders {name!r} were given with some of {self._encoders!r}; "
                "fingerprint all corpora and benchmarks with the same"
            )
        return self._index


class _Judge:
    """Goes through parts in order and says of each sample whether it is kept."""

    def __init__(self, config: DedupConfig, benchmarks: _Kept) -> None:
        self._config = config
        self._benchmarks = benchmarks
        self._questions: dict[int, Duplicate | None] = {}  # what became of the first answer to each

    def judge(self, part: _Part, own: _Kept, searched: Sequence[_Kept]) -> Iterator[Duplicate]:
        """The duplicates among the samples of `part`; the others are added to `own`."""
        prints = part.prints
        near = _NearRule(self._config, part, self._benchmarks, searched, with_itself=own in searched)
        kept = np.zeros(len(part), dtype=bool)
        seen: dict[int, int] = {}  # content -> row, of this part
        for row in range(len(part)):
            question = int(prints.question[row])
            if question and question in self._questions:
                if twin := self._questions[question]:
                    yield replace(twin, **_place(part, row))
                continue
            found = near.contamination(row)
            if found and not found.dropped:
                yield found
                found = None
            found = found or _exact(part, row, searched, seen) or near.twin(row, kept)
            if question:
                self._questions[question] = found
            if found:
                yield found
                continue
            kept[row] = True
            if own in searched:
                seen[int(prints.content[row])] = row
        own.add(part, kept)


def _exact(part: _Part, row: int, searched: Sequence[_Kept], seen: dict[int, int]) -> Duplicate | None:
    content = int(part.prints.content[row])
    for store in searched:
        if (key := store.by_content.get(content)) is not None:
            return _duplicate(part, row, store.ids[key], "exact", 1.0)
    if content in seen:
        return _duplicate(part, row, part.prints.ids[seen[content]], "exact", 1.0)
    return None


class _NearRule:
    """Compares the samples of one part with kept ones, and with each other."""

    def __init__(
        self,
        config: DedupConfig,
        part: _Part,
        benchmarks: _Kept,
        searched: Sequence[_Kept],
        *,
        with_itself: bool,
    ) -> None:
        self._config, self._part, self._searched, self._benchmarks = config, part, searched, benchmarks
        joined_least = config.threshold
        if config.rule == "each":
            joined_least = min(config.threshold, (config.threshold + config.image_threshold) / 2)
        self._tainted = benchmarks.find(part, joined_least) if benchmarks.ids else []
        self._candidates = [store.find(part, joined_least) if store.ids else [] for store in searched]
        self._least, self._with_itself = joined_least - SLACK, with_itself
        self._block, self._pairs = -1, np.zeros((0, 0), dtype=bool)

    def contamination(self, row: int) -> Duplicate | None:
        """The benchmark's sample that sample `row` is, exactly or nearly; answers may differ in form."""
        store, content = self._benchmarks, int(self._part.prints.content[row])
        dropped = self._config.contamination == "refuse"
        key, cosine = store.by_content.get(content), 1.0
        if key is None and self._tainted:
            key, cosine = self._nearest(row, store, self._tainted[row], same_answer=False)
        if key is None:
            return None
        return replace(_duplicate(self._part, row, store.ids[key], "contamination", cosine), dropped=dropped)

    def twin(self, row: int, kept: np.ndarray) -> Duplicate | None:
        """The kept sample that sample `row` is near to, of those before this part first, then of `kept` [N] in it."""
        same_answer = self._config.same_answer
        for store, candidates in zip(self._searched, self._candidates, strict=True):
            key, cosine = (
                self._nearest(row, store, candidates[row], same_answer) if candidates else (None, 0.0)
            )
            if key is not None:
                return _duplicate(self._part, row, store.ids[key], "near", cosine)
        rows = self._rows_before(row, kept) if self._with_itself else np.arange(0)
        cosines = self._cosines(row, self._part.joined[rows], self._part.facts[rows], same_answer)
        if not len(rows) or cosines.max() < 0:
            return None
        best = int(cosines.argmax())
        return _duplicate(self._part, row, self._part.prints.ids[rows[best]], "near", float(cosines[best]))

    def _rows_before(self, row: int, kept: np.ndarray) -> np.ndarray:
        """Rows before `row`, of the `kept` ones, of about the least cosine or more; rows are asked for in order."""
        block, joined = row // BLOCK, self._part.joined
        if block != self._block:
            start, end = block * BLOCK, (block + 1) * BLOCK
            self._block, self._pairs = block, joined[start:end] @ joined[:end].T >= self._least
        return np.flatnonzero(self._pairs[row % BLOCK, :row] & kept[:row])

    def _nearest(
        self, row: int, store: _Kept, keys: np.ndarray, same_answer: bool
    ) -> tuple[int | None, float]:
        if not len(keys):
            return None, 0.0
        keys = np.sort(keys)  # of equal ones the earliest
        cosines = self._cosines(row, store.joined(keys), store.facts(keys), same_answer)
        best = int(cosines.argmax())
        return (int(keys[best]), float(cosines[best])) if cosines[best] >= 0 else (None, 0.0)

    def _cosines(self, row: int, others: np.ndarray, facts: np.ndarray, same_answer: bool) -> np.ndarray:
        """Joined cosines [C] of sample `row` with C others, -1 where they are not near by the rule."""
        config, part = self._config, self._part
        ours, (symbols, answer, num_images) = part.joined[row], part.facts[row]
        split = part.prints.text.shape[1]
        text, image = others[:, :split] @ ours[:split], others[:, split:] @ ours[split:]
        joined = text + image
        weight = float(ours[:split] @ ours[:split])  # 1, or 1/2 beside images
        if config.rule == "joined":
            is_near = joined >= config.threshold
        else:
            is_near = (text >= weight * config.threshold) & (facts[:, 2] == num_images)
            if num_images:
                is_near &= image >= (1 - weight) * config.image_threshold
                is_near &= weight < 0.9  # images that cannot be read are near nothing
        if config.same_symbols:
            is_near &= facts[:, 0] == symbols
        if same_answer:
            is_near &= (facts[:, 1] == answer) | (facts[:, 1] == 0) | (answer == 0)
        return np.where(is_near, np.minimum(joined, 1.0), -1.0)


def _duplicate(part: _Part, row: int, of: str, kind: Kind, similarity: float) -> Duplicate:
    return Duplicate(
        **_place(part, row), corpus="", shard=0, of=of, kind=kind, similarity=round(similarity, 4)
    )


def _place(part: _Part, row: int) -> dict[str, Any]:
    return {"id": part.prints.ids[row], "source": part.prints.sources[row], "row": int(part.rows[row])}
