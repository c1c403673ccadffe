"""The funnel: rows in order, totals, and files that are written whole and refused when broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.curate.funnel import FUNNEL, Funnel, FunnelRow


def row(stage: str, source: str, count: int, **dropped: int) -> FunnelRow:
    return FunnelRow(stage=stage, source=source, count=count, dropped=dropped, digest=f"{stage}{count}")


def make() -> Funnel:
    funnel = Funnel()
    for made in (
        row("selected", "b", 5, near=2, exact=3),
        row("raw", "a", 10),
        row("raw", "b", 20),
        row("selected", "a", 7, exact=1),
    ):
        funnel = funnel.with_row(made)
    return funnel


def test_rows_are_in_the_order_of_stages_and_totals_add_up():
    funnel = make()
    assert [(r.stage, r.source) for r in funnel.rows] == [
        ("raw", "a"), ("raw", "b"), ("selected", "b"), ("selected", "a"),
    ]  # fmt: skip
    assert funnel.totals == {"raw": 30, "selected": 12}
    assert funnel.dropped() == {"selected": {"exact": 4, "near": 2}}


def test_a_stage_that_runs_again_replaces_its_row():
    funnel = make().with_row(row("raw", "a", 11))
    assert funnel.totals["raw"] == 31 and len(funnel.rows) == 4


def test_save_and_load_give_the_same_funnel(tmp_path: Path):
    path = tmp_path / FUNNEL
    make().save(path)
    assert Funnel.load(path) == make()
    before = path.read_bytes()
    Funnel.load(path).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [FUNNEL]


def test_missing_file_is_an_empty_funnel(tmp_path: Path):
    assert Funnel.load(tmp_path / FUNNEL) == Funnel()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"rows": 3}', '{"rows": [{"stage": "raw"}]}', '{"rows": [[]]}', "[" * 100_000]
    + [json.dumps({"rows": [{"stage": "raw", "source": "a", "count": count}]}) for count in (-1, 1.5, True)]
    + [json.dumps({"rows": [{"stage": "raw", "source": "a", "count": 1, "dropped": ["x"]}]})],
)
def test_broken_file_is_refused(tmp_path: Path, text: str):
    (tmp_path / FUNNEL).write_text(text)
    with pytest.raises(ValueError, match="funnel.json is not a funnel"):
        Funnel.load(tmp_path / FUNNEL)


def test_table_has_a_line_per_source_and_the_drops():
    assert make().table().splitlines() == [
        "source  raw  selected",
        "a        10         7",
        "b        20         5",
        "all      30        12",
        "selected dropped 4 exact, 2 near",
    ]


def test_unknown_stages_are_refused():
    with pytest.raises(ValueError, match="funnel stage='cooked' must be one of raw, "):
        row("cooked", "a", 1)
