"""Any place of the order is reached directly, and an epoch draws exactly its counts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.loader import order
from data_pipeline.loader.config import MixConfig
from data_pipeline.loader.mixture import mix
from data_pipeline.loader.order import iterate_draws
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message, Sample

SIZES = {"a": 40, "b": 7, "c": 100}


def texts(source: str, count: int) -> list[Sample]:
    return [
        Sample(id=f"{source}/{n}", source=source, messages=(Message(role="user", content="?"),))
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    for name, size in SIZES.items():
        write_shards(texts(name, size), root / name, ShardConfig(samples_per_shard=6))
    return root


def mixed(folders: Path, counts: str, seed: int = 0) -> ShardIndex:
    out = folders / f"mix-{counts}-{seed}"
    places = tuple(str(folders / part.split("=")[0]) for part in counts.split(","))
    if not out.exists():
        mix(MixConfig(shards=places, out=str(out), counts=counts, max_epochs=9, seed=seed))
    return ShardIndex.load(out)


def ids(index: ShardIndex, count: int, *, seed: int = 1, epoch: int = 0, position: int = 0) -> list[str]:
    return [draw.ref.id for draw in islice(iterate_draws(index, seed, epoch, position), count)]


def test_an_epoch_draws_every_sample_once_in_a_new_order(folders):
    index = ShardIndex.load(folders / "c")
    epochs = [ids(index, 100, epoch=epoch) for epoch in range(3)]
    assert all(sorted(epoch) == sorted(f"c/{n}" for n in range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] == ids(index, 100) != ids(index, 100, seed=2)
    assert ids(index, 300) == [*epochs[0], *epochs[1], *epochs[2]]


def test_even_a_single_shard_has_a_new_order_every_epoch(tmp_path):
    index = write_shards(digit_samples("train", 20, 0), tmp_path / "s")
    epochs = [ids(index, 20, epoch=epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_order_of_a_folder_is_windows_of_shuffled_shards(folders, monkeypatch):
    """Against the rule in plain numpy, for the whole epoch at once."""
    monkeypatch.setattr(order, "SHUFFLE_SHARDS", 5)
    index, seed, epoch = ShardIndex.load(folders / "c"), 3, 2
    wanted: list[str] = []
    shards = np.random.default_rng((seed, epoch)).permutation(len(index.shards))
    for start in range(0, len(shards), 5):
        numbers = np.concatenate(
            [np.arange(6 * s, min(6 * s + 6, len(index))) for s in shards[start : start + 5]]
        )
        wanted += [f"c/{n}" for n in np.random.default_rng((seed, epoch, start)).permutation(numbers)]
    assert ids(index, 100, seed=seed, epoch=epoch) == wanted


@pytest.mark.parametrize("window,block", [(1, 1), (2, 13), (3, 16), (64, 16_384)])
@pytest.mark.parametrize("counts", ["a=40", "a=30,b=21,c=50", "a=0,b=1,c=100"])
def test_the_order_can_start_anywhere(folders, monkeypatch, window, block, counts):
    monkeypatch.setattr(order, "SHUFFLE_SHARDS", window)
    monkeypatch.setattr(order, "BLOCK", block)
    index = mixed(folders, counts)
    size = sum(source.count for source in index.sources)
    through = [
        (d.ref, d.tokens, d.images, d.epoch, d.position) for d in islice(iterate_draws(index, 1), 3 * size)
    ]
    places = [(epoch, position) for epoch in range(3) for position in range(0, size + 1, 7)]
    for epoch, position in [*places, (0, size), (1, size)]:
        got = [
            (d.ref, d.tokens, d.images, d.epoch, d.position)
            for d in islice(iterate_draws(index, 1, epoch, position), 20)
        ]
        start = epoch * size + position
        assert got[: len(through) - start] == through[start : start + 20]


@pytest.mark.parametrize("block", [1, 10, 16_384])
def test_an_epoch_draws_exactly_the_counts_and_a_source_is_used_up_before_it_repeats(
    folders, monkeypatch, block
):
    monkeypatch.setattr(order, "BLOCK", block)
    index = mixed(folders, "a=16,b=14,c=50")
    drawn: Counter[str] = Counter()
    for epoch in range(1, 6):
        took = ids(index, 80, epoch=epoch - 1)
        assert Counter(i[0] for i in took) == {"a": 16, "b": 14, "c": 50}
        drawn.update(took)
        for name, count in (("a", 16), ("b", 14), ("c", 50)):
            times = [drawn[f"{name}/{n}"] for n in range(SIZES[name])]
            assert sum(times) == epoch * count and max(times) - min(times) <= 1


def test_sources_are_interleaved_in_proportion(folders, monkeypatch):
    """Each block holds each source's share of it, to one sample."""
    monkeypatch.setattr(order, "BLOCK", 20)
    took = ids(mixed(folders, "a=40,b=20,c=100"), 160)
    for start in range(0, 160, 20):
        shares = Counter(i[0] for i in took[start : start + 20])
        assert abs(shares["a"] - 5) <= 1 and abs(shares["b"] - 2.5) <= 1 and abs(shares["c"] - 12.5) <= 1
    assert "".join(i[0] for i in took[:20]) != "".join(i[0] for i in took[20:40])


def test_the_seed_of_a_mixture_decides_which_samples_come_first(folders):
    one, other = mixed(folders, "a=10,c=10", 0), mixed(folders, "a=10,c=10", 1)
    assert set(ids(one, 20)) != set(ids(other, 20)) and one.digest != other.digest
    assert ids(one, 20) == ids(mixed(folders, "a=10,c=10", 0), 20)


def test_only_the_rows_of_one_window_are_read_at_a_time(folders, monkeypatch):
    monkeypatch.setattr(order, "SHUFFLE_SHARDS", 2)
    index, read = ShardIndex.load(folders / "c"), []
    monkeypatch.setattr(
        ShardIndex, "rows", lambda self, shard, rows=ShardIndex.rows: read.append(shard) or rows(self, shard)
    )
    next(iterate_draws(index, 1, 0, 90))
    assert len(read) == 2, "a place late in an epoch needs only the rows of its own window"
    read.clear()
    ids(index, 100)
    assert sorted(read) == list(range(len(index.shards)))


def test_a_mixture_whose_source_changed_is_refused(folders, tmp_path):
    write_shards(texts("d", 9), tmp_path / "d")
    mix(MixConfig(shards=(str(tmp_path / "d"),), out=str(tmp_path / "mix")))
    mixture = json.loads((tmp_path / "mix" / "mixture.json").read_text())
    mixture["sources"][0]["place"] = str(folders / "a")
    (tmp_path / "mix" / "mixture.json").write_text(json.dumps(mixture))
    with pytest.raises(ValueError, match="run `omr data mix` again"):
        ShardIndex.load(tmp_path / "mix")


def test_a_folder_and_the_mixture_of_it_hold_the_same_samples(folders):
    index = mixed(folders, "a=40,c=100")
    assert len(index) == 140
    assert [index[number].id for number in range(38, 42)] == ["a/38", "a/39", "c/0", "c/1"]
    assert replace(index[0], shard="") == replace(ShardIndex.load(folders / "a")[0], shard="")
