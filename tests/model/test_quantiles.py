"""Quantiles of a loss's samples: numpy's where all values are there, close to them where some are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

POINTS = (0, 0.01, 0.5, 0.99, 1)


@pytest.mark.parametrize("count", [1, 2, 5, 1000])
def test_all_values_give_the_quantiles_of_numpy(count: int) -> None:
    from megatron_omr.train.quantiles import find_quantiles

    values = np.random.default_rng(count).lognormal(size=count)
    found = find_quantiles(values, np.ones(count), POINTS)
    assert found == pytest.approx(np.quantile(values, POINTS).tolist(), rel=1e-12)


def test_thinned_values_of_ranks_of_unlike_size_are_close_to_all() -> None:
    """Each thinned value stands for as many as its rank left out; smallest and largest stay."""
    from megatron_omr.train.quantiles import find_quantiles, thin

    drawn = np.random.default_rng(0)
    ranks = [drawn.random(50_000), 2 + drawn.random(700), np.zeros(0)]
    kept = [thin(torch.tensor(values), 1000).numpy() for values in ranks]
    assert [len(values) for values in kept] == [1000, 700, 0]
    weights = [
        np.full(len(few), len(values) / max(len(few), 1)) for few, values in zip(kept, ranks, strict=True)
    ]
    found = find_quantiles(np.concatenate(kept), np.concatenate(weights), POINTS)
    everything = np.concatenate(ranks)
    assert (found[0], found[-1]) == (everything.min(), everything.max())
    for point, value in zip(POINTS, found, strict=True):
        assert abs((everything < value).mean() - point) < 1 / 999
