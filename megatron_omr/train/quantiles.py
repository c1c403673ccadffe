"""Global quantiles of a loss's samples, over all micro-batches and data-parallel ranks, from few bytes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from megatron_omr import cpu
from megatron_omr.parallel import Ranks, gather_over_replicas
from megatron_omr.train.losses import LossOutput

MAX_VALUES = 4096
"""Values of a name that a rank sends, in float32: 16 KiB. Up to here quantiles are exact; of more it sends evenly
spaced order statistics, with the smallest and the largest, which moves a quantile by at most 1 / (MAX_VALUES - 1)."""

POINTS = {"min": 0.0, "p01": 0.01, "p50": 0.5, "p99": 0.99, "max": 1.0}
"""Suffix of a metric -> its quantile."""


def global_quantiles(ranks: Ranks, outputs: Sequence[LossOutput]) -> dict[str, float]:
    """Returns NAME_min, NAME_p01, NAME_p50, NAME_p99 and NAME_max of each of the samples; of none at all, nothing.

    Collective over the data-parallel ranks of one context-parallel rank, which all hold the same values: each counts
    once. Ranks may differ in number of values, not in names.
    """
    names = sorted(outputs[0].samples)
    if not names:
        return {}
    own = {name: torch.cat([output.samples[name].flatten() for output in outputs]) for name in names}
    found = {}
    for name, (values, weights) in _gather(ranks, own).items():
        if values.size:
            points = find_quantiles(values, weights, tuple(POINTS.values()))
            found |= {f"{name}_{suffix}": value for suffix, value in zip(POINTS, points, strict=True)}
    return found


def find_quantiles(
    values: NDArray[np.float64], weights: NDArray[np.float64], points: Sequence[float]
) -> list[float]:
    """Returns quantiles, interpolated linearly, of values that each stand for `weights` of them."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    centers = np.cumsum(weights) - (weights + 1) / 2  # with weights of 1: 0, 1, 2, ...
    return np.interp(np.array(points) * (weights.sum() - 1), centers, values).tolist()


def thin(values: Tensor, limit: int) -> Tensor:
    """Returns the values in order; of more than `limit`, so many evenly spaced ones, the first and last among them."""
    values = values.sort().values
    if len(values) <= limit:
        return values
    return values[
        torch.linspace(0, len(values) - 1, limit, dtype=torch.float64).round().long().to(values.device)
    ]


def _gather(
    ranks: Ranks, own: Mapping[str, Tensor]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Returns the values of all ranks, thinned, and how many each stands for."""
    sent = [thin(values.float(), MAX_VALUES) for values in own.values()]
    counts = gather_over_replicas(ranks, [float(len(values)) for values in own.values()])  # [rank][name]
    sizes = [[min(int(count), MAX_VALUES) for count in row] for row in counts]
    room = max(map(sum, sizes))
    packed = torch.zeros(room, device=cpu.device())
    packed[: sum(map(len, sent))] = torch.cat(sent)
    gathered = packed.new_empty(ranks.dp_size, room)
    dist.all_gather(list(gathered.unbind(0)), packed, group=ranks.dp_group())
    rows = [row[: sum(own)].split(own) for row, own in zip(gathered.cpu(), sizes, strict=True)]
    found = {}
    for number, name in enumerate(own):
        parts = [row[number].double().numpy() for row in rows]
        weights = [
            np.full(len(part), count[number] / max(len(part), 1))
            for part, count in zip(parts, counts, strict=True)
        ]
        found[name] = np.concatenate(parts), np.concatenate(weights)
    return found
