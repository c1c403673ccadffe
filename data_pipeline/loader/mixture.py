"""Mixes several folders of shards into one: says how many samples of each make an epoch, and copies nothing.

By default each source gives every sample once, as in the recipe. Where fewer are wanted, sources share evenly or by
weights, and the others make up for a source that is too small.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.files import write_json
from data_pipeline.loader.config import MixConfig
from data_pipeline.shards.index import INDEX, MIXTURE, ShardIndex
from data_pipeline.storage import is_local


@dataclass(frozen=True, kw_only=True)
class Share:
    """The samples that a source gives to an epoch; a row of mixture.json."""

    name: str
    place: str  # relative to the mixture where it is local
    digest: str
    size: int  # samples of the source
    weight: float | None  # None where the count was given
    count: int  # samples of it in an epoch


def mix(config: MixConfig) -> list[Share]:
    """Writes `out`/mixture.json, and returns its rows.

    Raises:
        ValueError: a source is no folder of shards or is named twice, a name is unknown, the sources hold too little,
            or `out` holds shards.
    """
    out = Path(config.out)
    if (out / INDEX).exists():
        raise ValueError(f"out={out} holds shards; choose another folder")
    indexes = [_load_source(place) for place in config.shards]
    _check_distinct(config.shards, indexes)
    names, sizes = source_names(config.shards), [len(index) for index in indexes]
    weights: list[float | None] = [None] * len(names)
    if config.counts:
        counts = _given_counts(config, names, sizes)
    else:
        numbers = _numbers("weights", config.weights, names)
        chosen = [numbers.get(name, 1.0) for name in names]
        if not config.samples and set(chosen) - {0.0, 1.0}:
            raise ValueError(
                f"weights={config.weights!r} say how samples divide, but without samples everything goes in; give "
                "samples as well, or counts instead"
            )
        counts = allocate(sizes, chosen, config.samples or None, config.max_epochs)
        weights = [*chosen]
    if not sum(counts):
        raise ValueError(f"nothing goes in: the sources hold {sum(sizes)} samples, counts are {counts}")
    places = [_relative(place, out) for place in config.shards]
    rows = zip(names, places, indexes, sizes, weights, counts, strict=True)
    shares = [
        Share(name=name, place=place, digest=index.digest, size=size, weight=weight, count=count)
        for name, place, index, size, weight, count in rows
    ]
    mixture = {
        "version": 1,
        "seed": config.seed,
        "samples": config.samples,
        "max_epochs": config.max_epochs,
        "sources": [asdict(share) for share in shares],
    }
    write_json(out / MIXTURE, mixture)
    return shares


def allocate(
    sizes: Sequence[int], weights: Sequence[float], total: int | None = None, max_epochs: float = 1.0
) -> list[int]:
    """Returns how many samples of each source make `total`, in proportion to the weights.

    A source gives at most `max_epochs` times its size; the others make up for it, by their weights.

    Args:
        total: None takes everything.

    Raises:
        ValueError: the sources hold less than `total`.
    """
    limits = [int(max_epochs * size) if weight else 0 for size, weight in zip(sizes, weights, strict=True)]
    if total is None:
        return limits
    if total > sum(limits):
        raise ValueError(
            f"samples={total}, but the sources hold {sum(limits)} at max_epochs={max_epochs:g}; ask for fewer, "
            "or raise max_epochs"
        )
    counts, giving = [0] * len(sizes), {i for i, limit in enumerate(limits) if limit}
    while giving:
        left = total - sum(counts)
        shares = {i: left * weights[i] / sum(weights[j] for j in giving) for i in giving}
        used_up = {i for i in giving if shares[i] >= limits[i]}
        if not used_up:
            return [
                given + part for given, part in zip(counts, _whole(shares, left, len(sizes)), strict=True)
            ]
        for i in used_up:
            counts[i] = limits[i]
        giving -= used_up
    return counts


def source_names(places: Sequence[str]) -> list[str]:
    """Returns the last part of each place, or the whole places where these are not distinct."""
    names = [place.rstrip("/").rpartition("/")[2] for place in places]
    return names if len(set(names)) == len(names) else list(places)


def _whole(shares: dict[int, float], total: int, num_sources: int) -> list[int]:
    """Returns the shares as integers that add up to `total`: rounded down, then the largest remainders up."""
    counts = [int(shares.get(i, 0)) for i in range(num_sources)]
    short = total - sum(counts)
    for i in sorted(shares, key=lambda i: (counts[i] - shares[i], i))[:short]:
        counts[i] += 1
    return counts


def _given_counts(config: MixConfig, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
    numbers = _numbers("counts", config.counts, names)
    if fractions := [number for number in numbers.values() if number != int(number)]:
        raise ValueError(f"counts={config.counts!r}: {fractions[0]} must be a whole number")
    counts = [int(numbers.get(name, 0)) for name in names]
    for name, size, count in zip(names, sizes, counts, strict=True):
        if count > config.max_epochs * size:
            raise ValueError(
                f"counts: {name}={count}, but it holds {size} and max_epochs={config.max_epochs:g}; "
                "ask for fewer, or raise max_epochs"
            )
    return counts


def _numbers(field: str, text: str, names: Sequence[str]) -> dict[str, float]:
    """Returns the number of each source from "a=2,b=1"."""
    numbers: dict[str, float] = {}
    for pair in filter(None, text.split(",")):
        name, _, number = pair.rpartition("=")
        if name not in names:
            raise ValueError(f"{field}={text!r}: there is no source {name!r}; name one of {', '.join(names)}")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise ValueError(f"{field}={text!r}: {number!r} is no number; write {names[0]}=2") from None
        if not 0 <= numbers[name] < float("inf"):
            raise ValueError(f"{field}={text!r}: {number} must be 0 or more")
    return numbers


def _check_distinct(places: Sequence[str], indexes: Sequence[ShardIndex]) -> None:
    first: dict[str, str] = {}
    for place, index in zip(places, indexes, strict=True):
        if len(index) and index.digest in first:
            raise ValueError(
                f"{place} holds the same shards as {first[index.digest]}; name it once and raise its weight"
            )
        first[index.digest] = place


def _load_source(place: str) -> ShardIndex:
    index = ShardIndex.load(place)
    if index.mixed:
        raise ValueError(
            f"{place} is a mixture itself; give its sources: {', '.join(s.name for s in index.mixed)}"
        )
    return index


def _relative(place: str, out: Path) -> str:
    """Returns a local place relative to `out`, so that both can move together."""
    return os.path.relpath(os.path.realpath(place), os.path.realpath(out)) if is_local(place) else place
