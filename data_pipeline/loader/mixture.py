"""Mixes several folders of shards into one by the number of samples that each gives to an epoch; copies nothing.

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
    indexes, names = _load_sources(config.shards), source_names(config.shards)
    sizes = [len(index) for index in indexes]
    if config.counts:
        weights, counts = [None] * len(names), _read_counts(config, names, sizes)
    else:
        weights = _read_weights(config, names)
        counts = allocate(sizes, weights, config.samples or None, config.max_epochs)
    if not sum(counts):
        raise ValueError(f"the mixture is empty: the sources hold {sum(sizes)} samples, counts are {counts}")
    places = [_relative(place, out) for place in config.shards]
    shares = [
        Share(name=name, place=place, digest=index.digest, size=len(index), weight=weight, count=count)
        for name, place, index, weight, count in zip(names, places, indexes, weights, counts, strict=True)
    ]
    settings = {"seed": config.seed, "samples": config.samples, "max_epochs": config.max_epochs}
    rows = [asdict(share) for share in shares]
    write_json(out / MIXTURE, {"version": 1, **settings, "sources": rows})
    return shares


def allocate(
    sizes: Sequence[int], weights: Sequence[float], total: int | None = None, max_epochs: float = 1.0
) -> list[int]:
    """Returns how many samples of each source make `total`, in proportion to the weights.

    A source gives at most `max_epochs` times its size; the others make up for it, by their weights.
    Without `total` each gives all of that. Raises ValueError if the sources hold less than `total`.
    """
    limits = [int(max_epochs * size) if weight else 0 for size, weight in zip(sizes, weights, strict=True)]
    if total is None:
        return limits
    if total > sum(limits):
        raise ValueError(
            f"samples={total}, but the sources hold {sum(limits)} at max_epochs={max_epochs:g}; ask for fewer, "
            "or raise max_epochs"
        )
    shares: dict[int, float] = {}
    giving = {i for i, limit in enumerate(limits) if limit}
    while giving:
        left = total - sum(shares.values())
        parts = {i: left * weights[i] / sum(weights[j] for j in giving) for i in giving}
        used_up = {i for i in giving if parts[i] >= limits[i]}
        shares |= {i: limits[i] for i in used_up} or parts
        giving = giving - used_up if used_up else set()
    return _round(shares, total, len(sizes))


def source_names(places: Sequence[str]) -> list[str]:
    """Returns the last part of each place, or the whole places where these are not distinct."""
    names = [place.rstrip("/").rpartition("/")[2] for place in places]
    return names if len(set(names)) == len(names) else list(places)


def _round(shares: dict[int, float], total: int, num_sources: int) -> list[int]:
    """Returns the shares as integers that add up to `total`: rounded down, then the largest remainders up."""
    counts = [int(shares.get(i, 0)) for i in range(num_sources)]
    short = total - sum(counts)
    for i in sorted(shares, key=lambda i: (counts[i] - shares[i], i))[:short]:
        counts[i] += 1
    return counts


def _read_weights(config: MixConfig, names: Sequence[str]) -> list[float]:
    numbers = _numbers("weights", config.weights, names)
    weights = [numbers.get(name, 1.0) for name in names]
    if not config.samples and set(weights) - {0.0, 1.0}:
        raise ValueError(
            f"weights={config.weights!r} divide the samples of an epoch, but samples is 0, which takes all; give "
            "samples as well, or counts instead"
        )
    return weights


def _read_counts(config: MixConfig, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
    numbers = _numbers("counts", config.counts, names)
    for name, size in zip(names, sizes, strict=True):
        count = numbers.get(name, 0)
        if count != int(count):
            raise ValueError(f"counts={config.counts!r}: {count} must be a whole number")
        if count > config.max_epochs * size:
            raise ValueError(
                f"counts: {name}={int(count)}, but it holds {size} and max_epochs={config.max_epochs:g}; "
                "ask for fewer, or raise max_epochs"
            )
    return [int(numbers.get(name, 0)) for name in names]


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


def _load_sources(places: Sequence[str]) -> list[ShardIndex]:
    """Loads the sources; raises ValueError for a mixture, and for one that holds the same shards as another."""
    first: dict[str, str] = {}  # digest -> place
    indexes = [ShardIndex.load(place) for place in places]
    for place, index in zip(places, indexes, strict=True):
        if index.mixed:
            names = ", ".join(source.name for source in index.mixed)
            raise ValueError(f"{place} is a mixture itself; give its sources: {names}")
        if len(index) and (same := first.get(index.digest)):
            raise ValueError(f"{place} holds the same shards as {same}; name it once and raise its weight")
        first[index.digest] = place
    return indexes


def _relative(place: str, out: Path) -> str:
    """Returns a local place relative to `out`, so that both can move together."""
    return os.path.relpath(os.path.realpath(place), os.path.realpath(out)) if is_local(place) else place
