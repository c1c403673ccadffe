"""The papers' numbers: columns are benchmarks of the registry, and means come out as printed."""

from __future__ import annotations

import pytest

from data_pipeline.benchmarks.groups import GROUPS, TWELVE_COLUMNS
from data_pipeline.benchmarks.registry import BENCHMARKS
from launch.published.openmmreasoner import BASE, COLDSTART, MAIN, RL, RL_ALGORITHMS, TABLES, TOKENS
from launch.published.table import read_table

ROUNDING = 0.1
"""Scores and means are printed with one digit: 0.05 of each."""


def test_columns_and_groups_are_benchmarks_of_the_registry():
    named = [*GROUPS.values(), *(table.columns for table in TABLES.values())]
    assert {name for names in named for name in names} <= BENCHMARKS.keys()
    assert {point.benchmark for point in TOKENS} <= BENCHMARKS.keys()
    assert len(set(TWELVE_COLUMNS)) == 12


@pytest.mark.parametrize("name", TABLES)
def test_computed_means_are_the_printed_ones(name):
    table = TABLES[name]
    for row in table.rows.values():
        if row.printed_mean is not None:
            assert table.mean(row.name) == pytest.approx(row.printed_mean, abs=ROUNDING), row.name


def test_the_gains_of_the_paper():
    base, sft, rl = (MAIN.mean(name) for name in (BASE, COLDSTART, RL))
    assert rl - base == pytest.approx(11.6, abs=0.05)  # of the abstract
    assert sft - base == pytest.approx(6.65, abs=0.01)


def test_tables_agree_about_the_same_models():
    for name, setting in ((COLDSTART, "SFT"), (RL, "GSPO n16")):
        assert RL_ALGORITHMS.rows[f"x8+ImgTxt / {setting}"].scores == MAIN.rows[name].scores


def test_daggers_and_gaps_of_a_row():
    table = read_table("paper", "title", ("a", "b", "c"), "  one | 1.5 2.0† - | 1.7\n  two | 1 2 3")
    row = table.rows["one"]
    assert (dict(row.scores), row.reproduced, row.printed_mean) == ({"a": 1.5, "b": 2.0}, {"b"}, 1.7)
    assert table.mean("one") is None
    assert table.mean("two") == 2.0
    assert len(MAIN.rows[BASE].reproduced) == 4
    with pytest.raises(ValueError, match="shorter"):
        read_table("paper", "title", ("a", "b", "c"), "one | 1 2")
