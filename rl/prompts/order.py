"""The order in which prompts are asked: that of data_pipeline/loader/order.py, or easy prompts first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

from data_pipeline.errors import BadSample
from data_pipeline.loader.order import Draw, iterate_draws
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import ShardIndex

NAMED = 3
"""Samples without a pass rate that an error names."""


def iterate_easy_first(index: ShardIndex, seed: int, epoch: int = 0, position: int = 0) -> Iterator[Draw]:
    """Yields the samples of all epochs after that place, in each epoch the easy ones first.

    The static curriculum of the published ablation: by metadata pass_rate, the highest first. What an epoch draws, and
    the order of equal ones, is that of iterate_draws. All samples are read once, at the first step, and 0.5 kB of each
    stay in memory: 37 MB of 74,000, 0.5 GB of a million.

    Raises:
        ValueError: samples have no pass rate.
    """
    size = sum(source.count for source in index.sources)
    rates: dict[str, float] = {}
    for number in count(epoch):
        draws = list(islice(iterate_draws(index, seed, number), size))
        rates |= read_pass_rates(index, [draw for draw in draws if draw.ref.id not in rates])
        draws.sort(key=lambda draw: -rates[draw.ref.id])  # stable
        for place, draw in enumerate(draws[position:], position + 1):
            yield draw._replace(position=place)
        position = 0


def read_pass_rates(index: ShardIndex, draws: list[Draw]) -> dict[str, float]:
    """Returns metadata pass_rate by id; 0 for samples that cannot be read, which are named when they are asked.

    Raises:
        ValueError: samples have none.
    """
    rates, missing = dict[str, float](), list[str]()
    for ref in (draw.ref for draw in draws):
        try:
            rate = read_sample(index.folder, ref).metadata.get("pass_rate")
        except BadSample:
            rate = 0.0
        if isinstance(rate, (int, float)) and not math.isnan(rate):
            rates[ref.id] = float(rate)
        else:
            missing.append(ref.id)
    if missing:
        raise ValueError(
            f"prompts.order=easy_first needs metadata pass_rate, and {len(missing)} of {len(draws)} samples of "
            f"{index.folder} have none, such as {', '.join(missing[:NAMED])}; `omr data score` measures it, and "
            "`omr data select --scores` writes it into the shards"
        )
    return rates
