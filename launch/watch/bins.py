"""Keeps the metrics of a run that grows in bounded memory: means, lowest and highest over equally many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

from launch.report.load import Metrics

MAX_BINS = 600
"""Rows that are kept: up to so many steps, each has its own."""


class _Values:
    """A metric in the steps of a bin."""

    __slots__ = ("count", "high", "low", "total")

    def __init__(self, step: int, value: float) -> None:
        self.total, self.count = value, 1
        self.low = self.high = (step, value)

    def add(self, step: int, value: float) -> None:
        self.total += value
        self.count += 1
        if value < self.low[1]:
            self.low = (step, value)
        if value > self.high[1]:
            self.high = (step, value)

    def merge(self, other: _Values) -> None:
        self.total += other.total
        self.count += other.count
        self.low = min(self.low, other.low, key=lambda point: point[1])
        self.high = max(self.high, other.high, key=lambda point: point[1])


class _Bin:
    __slots__ = ("last_step", "values")

    def __init__(self) -> None:
        self.last_step = 0
        self.values: dict[str, _Values] = {}

    def add(self, step: int, row: Mapping[str, float]) -> None:
        self.last_step = step
        for key, value in row.items():
            if not math.isfinite(value):
                continue
            if key in self.values:
                self.values[key].add(step, value)
            else:
                self.values[key] = _Values(step, value)

    def merge(self, other: _Bin) -> None:
        """Adds a bin of later steps."""
        self.last_step = other.last_step
        for key, values in other.values.items():
            if key in self.values:
                self.values[key].merge(values)
            else:
                self.values[key] = values


class BinnedMetrics:
    """Takes rows in the order of their steps; where there are too many, two neighbours become one."""

    def __init__(self, max_bins: int = MAX_BINS) -> None:
        self._max_bins = max_bins
        self._width = 1  # steps of a bin
        self._bins: dict[int, _Bin] = {}  # by step // width, ascending

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Adds the numbers of a step; those that are not finite are left out, as a chart does not show them."""
        self._bins.setdefault(step // self._width, _Bin()).add(step, row)
        if len(self._bins) > self._max_bins:
            self._halve()

    def metrics(self) -> Metrics | None:
        """Returns a row of means for each bin, at its last step, and the extremes behind them; None without a row."""
        if not self._bins:
            return None
        rows = tuple(
            (each.last_step, {key: values.total / values.count for key, values in each.values.items()})
            for each in self._bins.values()
        )
        return Metrics(rows=rows, extremes=self._extremes() if self._width > 1 else {})

    def _halve(self) -> None:
        self._width *= 2
        bins, self._bins = self._bins, {}
        for number, each in bins.items():
            if number // 2 in self._bins:
                self._bins[number // 2].merge(each)
            else:
                self._bins[number // 2] = each

    def _extremes(self) -> dict[str, tuple[tuple[int, float], ...]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for each in self._bins.values():
            for key, values in each.values.items():
                points.setdefault(key, []).extend(sorted({values.low, values.high}))
        return {key: tuple(each) for key, each in points.items()}
