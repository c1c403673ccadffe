"""Pass rates of questions, and the samples that have none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.curate.curate import curate
from data_pipeline.distill.asking import ask_questions
from data_pipeline.distill.config import AskConfig, TeacherConfig
from data_pipeline.distill.responses import ShardSummary, TeacherResponse, responses_digest
from data_pipeline.distill.scoring import compute_pass_rates, read_scores, write_scores
from data_pipeline.select.config import FilterConfig, SelectConfig
from data_pipeline.select.select import select
from data_pipeline.served.config import ServerConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.sources.config import RowsConfig
from data_pipeline.verify.config import CheckerConfig
from tests.helpers.adding_teacher import AddingTeacher, right, write_questions


def asked(teacher: AddingTeacher, seed: int = 42) -> TeacherConfig:
    server = ServerConfig(base_url=teacher.url, retries=0)
    return TeacherConfig(server=server, k=2, checker=CheckerConfig(workers=1), max_failures=9, seed=seed)


def test_pass_rate_counts_only_received_responses():
    def response(id: str, accuracy: float, text: str | None = "x") -> TeacherResponse:
        return TeacherResponse(id=id, response=text, accuracy=accuracy)

    found = [response("a", 1.0), response("a", 0.0), response("a", 0.0, None), response("b", 0.0, None)]
    assert compute_pass_rates(found) == {"a": 0.5}


def test_scores_need_all_responses(teacher: AddingTeacher, tmp_path: Path):
    rated = AskConfig(
        shards=write_questions(tmp_path / "a", 10), out=str(tmp_path / "rated"), teacher=asked(teacher)
    )
    with pytest.raises(ValueError, match="is not complete"):
        write_scores(rated)
    assert not (tmp_path / "rated/scores.jsonl").exists()


@pytest.mark.parametrize("text", ["[]", "3", '{"id": "q0"}', "no JSON"])
def test_file_without_pass_rates_is_named(tmp_path: Path, text: str):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"scores=.*x\.jsonl holds no pass rates .*`omr data score`"):
        read_scores(tmp_path / "x.jsonl")


def test_questions_without_a_score_are_dropped(teacher: AddingTeacher, tmp_path: Path):
    shards = write_questions(tmp_path / "a", 10)
    teacher.respond = lambda number, total: 400 if total == 12 else right(total + number)
    rated = AskConfig(shards=shards, out=str(tmp_path / "rated"), teacher=asked(teacher))
    ask_questions(rated)
    path = write_scores(rated)
    assert read_scores(path) == {f"q{n}": 0.5 for n in (0, 2, 3)}
    wanted = SelectConfig(
        shards=shards,
        out=str(tmp_path / "kept"),
        scores=(str(path),),
        filters=FilterConfig(min_pass_rate=0.5),
    )
    report = select(wanted)
    assert (report.kept, report.dropped) == (3, {"unscored": 1})
    with pytest.raises(ValueError, match="pass_rate=None; this filter needs a number"):
        select(replace(wanted, out=str(tmp_path / "never"), scores=()))


def test_curation_counts_what_teacher_and_student_left_out(teacher: AddingTeacher, tmp_path: Path):
    shards = write_questions(tmp_path / "a", 10)

    def respond(number: int, total: int) -> str | int:
        """The student is asked first, twice; then the teacher."""
        if number < 2:
            return 400 if total in (13, 14) else right(total)  # all questions of the second shard
        return [right(total), 400 if total == 11 else right(0)][number - 2]

    teacher.respond = respond
    source = SourceConfig(name="sums", corpus=SHARDS, rows=RowsConfig(path=shards), responses="distill")
    recipe = CurateConfig(
        out=str(tmp_path / "out"),
        sources=(source,),
        teachers=(asked(teacher),),
        student=asked(teacher, seed=7),
        difficulty=True,
        responses=FilterConfig(min_pass_rate=0.5),
    )
    rows = {row.stage: row for row in curate(recipe).rows}
    assert (rows["distilled"].count, rows["distilled"].dropped) == (7, {"refused": 1})
    assert (rows["verified"].count, rows["verified"].dropped) == (4, {"wrong": 3})
    index = ShardIndex.load(tmp_path / "out/filtered/sums")
    assert rows["verified"].digest == responses_digest([str(tmp_path / "out/distilled/sums")], index)
    assert ShardSummary.load(tmp_path / "out/distilled/sums", index, 0)
    assert (rows["selected"].count, rows["selected"].dropped) == (2, {"unscored": 2})
