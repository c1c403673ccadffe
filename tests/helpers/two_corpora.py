"""Two corpora and a benchmark as shards, with one exact, one near duplicate and one contaminated sample."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.writer import write_shards
from tests.helpers.alike import ask, jpeg, photographs, png


def write_corpora(folder: Path) -> None:
    """Writes `first` (a0 to a7), `second` (b0 to b3; all but b2 are duplicates) and `bench`."""
    a, b, c = (png(photographs()[i]) for i in (3, 5, 7))
    first = [ask(f"a{i}", f"How many are {i}?", answer=str(i), response="so " * i) for i in range(7)]
    first += [ask("a7", "Who is it?", a, response="x")]
    second = [
        ask("b0", "Who is it?", a, response="y"),
        ask("b1", "Who is it?", jpeg(photographs()[3]), response="y"),
        ask("b2", "Who is it?", b, response="y"),
        ask("b3", "What time is it?", c, response="y"),
    ]
    write_shards(first, folder / "first", ShardConfig(samples_per_shard=3))
    write_shards(second, folder / "second", ShardConfig(samples_per_shard=3))
    write_shards([ask("t0", "What time is it?", jpeg(photographs()[7], 80))], folder / "bench")


def read_drops(folder: Path) -> list[list[str]]:
    """Returns (id, reason) of the samples that a stage dropped."""
    lists = [json.loads(path.read_text()) for path in sorted((folder / "dropped").iterdir())]
    return [pair for found in lists for pair in [*found["dropped"], *found["bad"]]]
