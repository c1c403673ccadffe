"""scores.md: the run beside all rows of the paper, and what is not a published number."""

from __future__ import annotations

from dataclasses import replace

from data_pipeline.benchmarks.groups import TWELVE_COLUMNS
from launch.evaluation.table import average_columns, write_markdown
from rl.evaluation.scores import BenchmarkScores, RunScores

WHOLE = BenchmarkScores(
    metric="accuracy",
    value=0.5,
    ci95=(0.4, 0.6),
    units=1,
    questions=1,
    published_questions=1,
    dropped=0,
    is_whole=True,
    n=1,
    numbers={"accuracy": 0.5, "other": 0.25},
    by={},
    tokens=10.0,
    truncated=0.0,
    format=1.0,
    bad_questions={},
    use_judge=True,
    overrides={},
)


def build_run(**changed: BenchmarkScores) -> RunScores:
    return RunScores(model="mine", seed=1, benchmarks=dict.fromkeys(TWELVE_COLUMNS, WHOLE) | changed)


def test_run_stands_beside_every_row_of_the_paper():
    page = write_markdown(build_run())
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    columns = list(TWELVE_COLUMNS)
    cells = {row.split(" | ")[0][2:]: row.removesuffix(" |").split(" | ")[1:] for row in rows}
    assert cells["**mine**"] == ["50.0"] * 12 + ["50.0"]
    assert cells["OMR-7B"][columns.index("dynamath")] == "34.9" and cells["OMR-7B"][-1] == "54.3"
    assert cells["OVR-7B"][columns.index("mathvision_test")] == "51.8"
    assert cells["OVR-7B"][columns.index("mmmu_val")] == "51.8†"  # measured by the paper's authors
    assert cells["VLAA-Thinker-7B"][columns.index("mmmu_val")] == "-" == cells["VLAA-Thinker-7B"][-1]


def test_rows_that_the_import_refused_and_incomplete_groups_are_marked_and_leave_no_mean():
    assert average_columns(build_run()) == 50.0 and "*" not in write_markdown(build_run()).replace("**", "")
    cut = replace(WHOLE, numbers={"worst": 0.5, "average": 0.75, "incomplete_groups": 180})
    for name, scores, reason in (
        ("dynamath", cut, "dynamath: 180 incomplete groups"),
        ("logicvista", replace(WHOLE, dropped=1), "logicvista: 1 rows refused by the import"),
    ):
        run = build_run(**{name: scores})
        page = write_markdown(run)
        assert average_columns(run) is None and "50.0*" in page and reason in page and "18000" not in page
