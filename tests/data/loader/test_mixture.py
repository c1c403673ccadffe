"""Counts equal exact water-filling; the command prints and writes the same mixture."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.loader.config import MixConfig
from data_pipeline.loader.mixture import allocate, mix, source_names
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_sample, read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.types import Message, Sample
from launch.cli import main


@pytest.fixture
def folders(tmp_path) -> Path:
    for name, size in {"a": 40, "b": 7, "c": 100}.items():
        turns = (Message(role="user", content="?"),)
        samples = [Sample(id=f"{name}/{n}", source=name, messages=turns) for n in range(size)]
        write_shards(samples, tmp_path / "shards" / name, ShardConfig(samples_per_shard=9))
    return tmp_path / "shards"


@pytest.mark.parametrize(
    "sizes,weights,total,max_epochs,counts",
    [
        ([100, 50, 10], [1, 1, 1], None, 1, [100, 50, 10]),  # the plain mix of the paper: every sample once
        ([100, 50, 10], [1, 1, 1], 30, 1, [10, 10, 10]),
        ([100, 50, 10], [1, 1, 1], 90, 1, [40, 40, 10]),
        ([100, 50, 10], [1, 1, 1], 150, 1, [90, 50, 10]),
        ([100, 50, 10], [2, 1, 0], 30, 1, [20, 10, 0]),
        ([100, 50, 10], [1, 1, 1], 90, 3, [30, 30, 30]),
        ([100, 50, 10], [1, 1, 1], None, 0.5, [50, 25, 5]),
        ([100, 100, 100], [1, 1, 1], 100, 1, [34, 33, 33]),
        ([10, 10], [1, 3], 10, 1, [3, 7]),
        ([5], [1], 0, 1, [0]),
    ],
)
def test_counts_of_worked_examples(sizes, weights, total, max_epochs, counts):
    assert allocate(sizes, weights, total, max_epochs) == counts


@settings(deadline=None)
@given(st.data())
def test_counts_are_the_water_level(data):
    """In exact arithmetic there is one level: each source gives level x weight, or all that it has."""
    sizes = data.draw(st.lists(st.integers(0, 2_000), min_size=1, max_size=6))
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    total = data.draw(st.integers(0, sum(sizes)))
    counts = allocate(sizes, weights, total)
    assert sum(counts) == total and all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    low, high = Fraction(0), Fraction(3_000)
    for _ in range(60):
        level = (low + high) / 2
        given_ = sum(min(Fraction(size), level * w) for size, w in zip(sizes, weights, strict=True))
        low, high = (level, high) if given_ < total else (low, level)
    for count, size, weight in zip(counts, sizes, weights, strict=True):
        assert abs(count - min(Fraction(size), high * weight)) < 1 + Fraction(1, 1_000)


def test_more_samples_than_the_sources_hold_are_refused():
    with pytest.raises(ValueError, match="samples=161, but the sources hold 160 at max_epochs=1"):
        allocate([100, 60], [1, 1], 161)


def test_names_are_short_if_distinct():
    assert source_names(["x/a", "https://h/b/"]) == ["a", "b"]
    assert source_names(["x/train", "y/train"]) == ["x/train", "y/train"]


def test_the_command_prints_and_writes_the_mixture(folders, capsys):
    out = folders / "mix"
    sources = [str(folders / name) for name in "abc"]
    assert (
        main(
            ["data", "mix", *sources, "--out", str(out), "--samples", "60", "--weights", "c=2", "--seed", "5"]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["source", "samples", "weight", "count", "share", "epochs"],
        ["a", "40", "1", "18", "30.0%", "0.45"],
        ["b", "7", "1", "7", "11.7%", "1.00"],
        ["c", "100", "2", "35", "58.3%", "0.35"],
        ["total", "147", "60"],
    ]
    mixture = json.loads((out / "mixture.json").read_text())
    assert mixture["seed"] == 5 and [s["place"] for s in mixture["sources"]] == ["../a", "../b", "../c"]
    assert [s["count"] for s in mixture["sources"]] == [18, 7, 35]
    before = (out / "mixture.json").read_bytes()
    assert (
        main(
            ["data", "mix", *sources, "--out", str(out), "--samples", "60", "--weights", "c=2", "--seed", "5"]
        )
        == 0
    )
    assert (out / "mixture.json").read_bytes() == before


def test_a_mixture_reads_like_a_folder_and_moves_with_its_sources(folders, tmp_path):
    mix(MixConfig(shards=(str(folders / "a"), str(folders / "b")), out=str(folders / "mix")))
    shutil.move(folders, tmp_path / "elsewhere")
    index = ShardIndex.load(tmp_path / "elsewhere" / "mix" / "mixture.json")
    wanted = [f"a/{n}" for n in range(40)] + [f"b/{n}" for n in range(7)]
    assert [read_sample(index.folder, ref).id for ref in index] == wanted
    assert [sample.id for sample in read_shards(tmp_path / "elsewhere" / "mix")] == wanted
    assert [(s.name, s.size, s.count) for s in index.sources] == [("a", 40, 40), ("b", 7, 7)]


@pytest.mark.parametrize(
    "options,problem",
    [
        (dict(weights="x=1"), "no source 'x'; name one of a, b"),
        (dict(weights="a=much"), "'much' is no number"),
        (dict(weights="a=-1"), "must be 0 or more"),
        (dict(counts="a=41"), "a=41, but it holds 40"),
        (dict(counts="a=4", samples=3), "counts exclude weights and samples"),
        (dict(samples=48), "hold 47"),
        (dict(max_epochs=0), "above 0"),
        (dict(out=""), "must both be given"),
        (dict(weights="a=2"), "samples is 0, which takes all"),
        (dict(counts="a=0"), "the mixture is empty"),
        (dict(counts="a=1.5"), "must be a whole number"),
    ],
)
def test_mistakes_are_errors_that_say_what_to_do(folders, options, problem):
    places = (str(folders / "a"), str(folders / "b"))
    with pytest.raises(ValueError, match=problem):
        mix(MixConfig(**{"shards": places, "out": str(folders / "mix"), **options}))


def test_mixtures_of_mixtures_and_taken_folders_are_refused(folders):
    mix(MixConfig(shards=(str(folders / "a"),), out=str(folders / "mix")))
    with pytest.raises(ValueError, match="give its sources: a"):
        mix(MixConfig(shards=(str(folders / "mix"),), out=str(folders / "more")))
    with pytest.raises(ValueError, match="holds shards"):
        mix(MixConfig(shards=(str(folders / "a"),), out=str(folders / "b")))
