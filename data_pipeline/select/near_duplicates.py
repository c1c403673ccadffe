"""Finds duplicates, and samples of benchmarks, in one pass over fingerprints in the order of the corpora.

A sample is compared with those that were kept before it, and dropped when one of them is the same (`exact`: text and
pixels) or near; so nothing is dropped for a sample that is dropped itself. Responses to one question (metadata
`question`) are not duplicates of each other: the first of them decides for the others.
Legend: N samples of a shard, C candidates for one of them, D numbers of a joined vector (text, then images).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.select.config import DedupConfig
from data_pipeline.select.drop_lists import Duplicate, Kind
from data_pipeline.select.fingerprints import Fingerprints
from data_pipeline.select.neighbours import Neighbours

CANDIDATES = 8
"""Nearest kept samples that are compared; the nearest by the joined vectors may differ in symbols or answer."""
BLOCK = 2048
"""Rows of a shard whose cosines with the rows before them are held at once."""
SLACK = 0.002
"""Largest error of a cosine of float16 vectors; candidates are taken this far below the threshold."""


@dataclass(frozen=True, kw_only=True)
class FingerprintedFolder:
    """Fingerprints of a folder of shards."""

    digest: str  # of its ShardIndex: identifies the data, wherever the folder is
    fingerprints: tuple[Path, ...]  # a file per shard


def find_duplicates(
    corpora: Sequence[FingerprintedFolder],
    config: DedupConfig,
    against: Sequence[FingerprintedFolder] = (),
    *,
    share: int = 0,
    num_shares: int = 1,
) -> Iterator[Duplicate]:
    """Yields the duplicates in `corpora` by the rule of `config`, and what is near a sample of `against`.

    Where near samples must agree in their symbols, samples are divided by them into `num_shares` shares that cannot
    hold duplicates of each other: machines can take one `share` each of the same files, and together find the same.
    Questions without any symbol are all in one share.

    Raises:
        ValueError: a file holds no fingerprints, or those of another encoder; or shares without `same_symbols`.
    """
    if num_shares > 1 and not config.same_symbols:
        raise ValueError(f"shares={num_shares} needs dedup.same_symbols, which divides samples; use 1 share")

    def load(corpus: FingerprintedFolder) -> Iterator[_ShardPrints]:
        for number, path in enumerate(corpus.fingerprints):
            prints = Fingerprints.load(path)
            if prints.encoder != config.text_encoder:
                raise ValueError(
                    f"{path} holds fingerprints of the encoder {prints.encoder!r}, but dedup.text_encoder="
                    f"{config.text_encoder!r}; fingerprint all corpora and benchmarks with the same"
                )
            rows = np.flatnonzero(prints.symbols % num_shares == share)
            yield _ShardPrints(prints.at(rows), rows, corpus.digest, number)

    benchmarks, all_kept = _KeptSamples(config), _KeptSamples(config)
    for corpus in against:
        for shard in load(corpus):
            benchmarks.add(shard, np.ones(len(shard), dtype=bool))
    earlier: list[_KeptSamples] = []
    decided: dict[int, _Found | None] = {}  # by question, the result of its first response
    for corpus in tqdm(corpora, desc="compare", unit=" corpora", disable=None):
        own = all_kept if config.scope == "both" else _KeptSamples(config)
        searched = earlier if config.scope == "across" else [own]
        for shard in load(corpus):
            comparison = _Comparison(config, shard, benchmarks, searched, with_itself=own in searched)
            yield from _compare(comparison, decided)
            own.add(shard, comparison.kept)
        if config.scope == "across":
            earlier.append(own)


_Found = tuple[Kind, str, float]
"""A kind of duplicate, the id of the sample that is duplicated, and the cosine of the two."""


def _compare(comparison: _Comparison, decided: dict[int, _Found | None]) -> Iterator[Duplicate]:
    """Yields the duplicates among the samples of a shard, and marks the others as kept."""
    shard = comparison.shard
    for row, question in enumerate(shard.prints.question.tolist()):
        if is_first := not question or question not in decided:
            found = comparison.find_contamination(row)
            if found and found[0] == "reported":
                yield shard.duplicate(row, found)
                found = None
            decided[question] = found or comparison.find_kept(row)
        if found := decided[question]:
            yield shard.duplicate(row, found)
        elif is_first:
            comparison.keep(row)


class _ShardPrints:
    """Fingerprints of a shard, all or a share, with joined vectors [N, D] float32: equal weights, length 1."""

    def __init__(self, prints: Fingerprints, rows: np.ndarray, corpus: str, number: int) -> None:
        self.prints, self._rows, self._corpus, self._number = prints, rows, corpus, number
        has_image = prints.image.any(axis=1, keepdims=True)
        weight = np.where(has_image, np.float32(0.5**0.5), np.float32(1))
        self.joined = np.concatenate([prints.text, prints.image], axis=1).astype(np.float32) * weight
        self.facts = np.stack([prints.symbols, prints.answer, prints.num_images.astype(np.uint64)], axis=1)

    def __len__(self) -> int:
        return len(self.prints)

    def duplicate(self, row: int, found: _Found) -> Duplicate:
        """Returns sample `row` as a duplicate of the sample `found`."""
        kind, of, cosine = found
        return Duplicate(
            id=self.prints.ids[row],
            source=self.prints.sources[row],
            corpus=self._corpus,
            shard=self._number,
            row=int(self._rows[row]),
            of=of,
            kind=kind,
            similarity=round(cosine, 4),
        )


class _KeptSamples:
    """Samples that were kept: hashes, vectors, ids and facts (symbols, answer, number of images) by key."""

    def __init__(self, config: DedupConfig) -> None:
        self._neighbours = Neighbours(exact_below=config.exact_below, threads=config.threads)
        self._facts = array("Q")
        self.ids: list[str] = []
        self.by_content: dict[int, int] = {}

    def add(self, shard: _ShardPrints, mask: np.ndarray) -> None:
        """Adds the samples of a shard where `mask` [N] is true."""
        rows, first = np.flatnonzero(mask), len(self.ids)
        self._neighbours.add(shard.joined[rows])
        self._facts.frombytes(shard.facts[rows].tobytes())
        self.ids += [shard.prints.ids[row] for row in rows]
        for key, content in enumerate(shard.prints.content[rows].tolist(), first):
            self.by_content.setdefault(content, key)

    def find(self, shard: _ShardPrints, least: float) -> list[np.ndarray]:
        """Returns per sample of the shard the keys of its candidates: kept samples of at least that cosine."""
        keys, cosines = self._neighbours.find(shard.joined, CANDIDATES)
        # of equal cosines the earliest sample wins
        return [np.sort(keys[row][cosines[row] >= least]) for row in range(len(shard))]

    def at(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors [C, D] and facts [C, 3] of `keys` [C]."""
        facts = np.frombuffer(self._facts, dtype=np.uint64).reshape(-1, 3)
        return self._neighbours.vectors(keys).astype(np.float32), facts[keys]


_Searched = tuple[_KeptSamples, list[np.ndarray]]


class _Comparison:
    """Compares the samples of a shard with kept ones, and with each other. Rows are asked for in order."""

    def __init__(
        self,
        config: DedupConfig,
        shard: _ShardPrints,
        benchmarks: _KeptSamples,
        searched: Sequence[_KeptSamples],
        *,
        with_itself: bool,
    ) -> None:
        self._config, self.shard, self._with_itself = config, shard, with_itself
        self._least = config.threshold - SLACK
        if config.rule == "each":
            self._least = min(config.threshold, (config.threshold + config.image_threshold) / 2) - SLACK
        # the kept samples with, for each row, the keys of its candidates
        self._benchmarks = [(benchmarks, benchmarks.find(shard, self._least))]
        self._searched = [(samples, samples.find(shard, self._least)) for samples in searched]
        self.kept = np.zeros(len(shard), dtype=bool)
        self._row_by_content: dict[int, int] = {}  # of kept rows
        self._block, self._is_candidate = -1, np.zeros((0, 0), dtype=bool)

    def keep(self, row: int) -> None:
        """Keeps sample `row`: later ones are compared with it."""
        self.kept[row] = True
        if self._with_itself:
            self._row_by_content.setdefault(int(self.shard.prints.content[row]), row)

    def find_contamination(self, row: int) -> _Found | None:
        """Returns a benchmark's sample that `row` duplicates, exact or near; their answers may differ in form."""
        kind = "contamination" if self._config.contamination == "refuse" else "reported"
        found = self._exact(row, self._benchmarks) or self._near(row, self._benchmarks, same_answer=False)
        return found and (kind, *found)

    def find_kept(self, row: int) -> _Found | None:
        """Returns the kept sample that `row` duplicates, exact before near: of earlier shards, else of this one."""
        shard, same_answer = self.shard, self._config.same_answer
        found = self._exact(row, self._searched)
        if not found and (own := self._row_by_content.get(int(shard.prints.content[row]))) is not None:
            found = shard.prints.ids[own], 1.0
        if found:
            return "exact", *found
        found = self._near(row, self._searched, same_answer=same_answer)
        if not found and self._with_itself:
            rows = self._rows_before(row)
            if best := self._best(row, shard.joined[rows], shard.facts[rows], same_answer):
                return "near", shard.prints.ids[rows[best[0]]], best[1]
        return found and ("near", *found)

    def _exact(self, row: int, searched: Sequence[_Searched]) -> tuple[str, float] | None:
        content = int(self.shard.prints.content[row])
        keys = ((samples, samples.by_content.get(content)) for samples, _ in searched)
        return next(((samples.ids[key], 1.0) for samples, key in keys if key is not None), None)

    def _near(
        self, row: int, searched: Sequence[_Searched], *, same_answer: bool
    ) -> tuple[str, float] | None:
        for samples, candidates in searched:
            keys = candidates[row]
            if len(keys) and (best := self._best(row, *samples.at(keys), same_answer)):
                return samples.ids[keys[best[0]]], best[1]
        return None

    def _rows_before(self, row: int) -> np.ndarray:
        """Returns the kept rows before `row` whose cosine is high enough."""
        block, joined = row // BLOCK, self.shard.joined
        if block != self._block:
            start, end = block * BLOCK, (block + 1) * BLOCK
            self._block, self._is_candidate = block, joined[start:end] @ joined[:end].T >= self._least
        return np.flatnonzero(self._is_candidate[row % BLOCK, :row] & self.kept[:row])

    def _best(
        self, row: int, others: np.ndarray, facts: np.ndarray, same_answer: bool
    ) -> tuple[int, float] | None:
        """Returns which of C others, [C, D] and [C, 3], is nearest to sample `row`, and its joined cosine."""
        config, prints = self._config, self.shard.prints
        ours, (symbols, answer, num_images) = self.shard.joined[row], self.shard.facts[row]
        split = prints.text.shape[1]
        text, image = others[:, :split] @ ours[:split], others[:, split:] @ ours[split:]
        weight = float(ours[:split] @ ours[:split])  # 1, or 1/2 beside images
        if config.rule == "joined":
            is_near = text + image >= config.threshold
        else:
            is_near = (text >= weight * config.threshold) & (facts[:, 2] == num_images)
            if num_images:
                is_near &= image >= (1 - weight) * config.image_threshold
                is_near &= weight < 0.9  # images that cannot be decoded have no vector
        if config.same_symbols:
            is_near &= facts[:, 0] == symbols
        if same_answer:
            is_near &= (facts[:, 1] == answer) | (facts[:, 1] == 0) | (answer == 0)
        if not is_near.any():
            return None
        cosines = np.where(is_near, np.minimum(text + image, 1.0), -1.0)
        best = int(cosines.argmax())
        return best, float(cosines[best])
