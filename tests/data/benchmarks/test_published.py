"""The paper's rows: means are those that it prints, names are those of our benchmarks."""

from __future__ import annotations

import pytest

from data_pipeline.benchmarks.published import (
    ABLATION,
    COLUMNS,
    TEXT,
    PublishedRow,
    published_points,
    published_tables,
)
from data_pipeline.benchmarks.registry import BENCHMARKS

PRINTED = {
    "main": (COLUMNS, (42.7, 49.4, 54.3)),
    "text": (TEXT, (15.1, 22.2, 29.4)),
    "teacher": (ABLATION, (45.3, 49.8, 50.5)),
    "answer_diversity": (ABLATION, (50.5, 52.7, 52.9, 55.2)),
    "filters": (ABLATION, (55.2, 54.2, 51.3)),
    "domain_mixing": (ABLATION, (55.2, 55.6, 55.6, 56.3)),
    "answer_diversity_12": (COLUMNS, (46.7, 47.5, 48.2, 49.2)),
    "format_weight": (COLUMNS, (51.1, 47.0, 45.0, 48.8)),
    "rl": (
        COLUMNS,
        (49.4, 45.6, 48.9, 51.1, 51.6, 54.3, 52.5, 49.2, 49.6, 49.3, 51.0, 7.4, 46.7, 47.6, 49.2, 47.0),
    ),
}
"""Means that the paper prints for the first rows of its tables; it rounds once more than we do."""


@pytest.mark.parametrize("name", published_tables())
def test_means_are_those_of_the_paper(name: str):
    benchmarks, printed = PRINTED[name]
    rows = published_tables()[name].rows[: len(printed)]
    assert [row.mean(benchmarks) for row in rows] == pytest.approx(printed, abs=0.075)


def test_names_are_those_of_benchmarks():
    rows = [row for table in published_tables().values() for row in table.rows]
    assert {name for row in rows for name in row.scores} <= BENCHMARKS.keys()
    assert all(set(row.reproduced) <= row.scores.keys() for row in rows)
    assert {point.benchmark for point in published_points()} <= BENCHMARKS.keys()


def test_a_row_is_found_by_its_start_and_has_no_mean_over_what_it_lacks():
    rl = published_tables()["rl"]
    assert rl.row("GSPO n16", start="x8").scores["mathvista_testmini"] == 75.1
    with pytest.raises(KeyError, match="no row 'GSPO n16' of start ''"):
        rl.row("GSPO n16")
    assert PublishedRow(name="", scores={"aime24": 1.0}).mean(TEXT) is None
