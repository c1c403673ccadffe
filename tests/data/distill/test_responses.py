"""Records of responses, and their counts."""

from __future__ import annotations

import pytest

from data_pipeline.distill.responses import ResponseStats, TeacherResponse, stats_table
from data_pipeline.verify.record import ScoredResponse


def test_record_is_read_back_and_is_a_scored_response():
    response = TeacherResponse(
        id="a", rollout=1, answer="4", response="half \ud83d", seconds=1.5, teacher="t"
    )
    assert TeacherResponse.from_json(response.to_json()) == response
    scored = ScoredResponse.from_json(response.to_json())
    assert (scored.id, scored.rollout, scored.answer) == ("a", 1, "4")


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"id": "a", "attempts": "many"}'])
def test_other_lines_are_refused(line: bytes):
    with pytest.raises(ValueError):
        TeacherResponse.from_json(line)


def test_stats_add_up():
    one, two = ResponseStats(), ResponseStats()
    one.add([TeacherResponse(id="a", response="", accuracy=1.0, response_len=5, reason="truncated")])
    right = TeacherResponse(id="b", response="", accuracy=1.0, prompt_len=3)
    two.add([right, TeacherResponse(id="b", rollout=1, reason="timeout", detail="slow")])
    two.add([TeacherResponse(id="c", reason="timeout", detail="slower")])
    one.merge(two)
    counts = (one.questions, one.solved, one.asked, one.received, one.right, one.kept)
    assert counts == (3, 1, 4, 2, 2, 1) and (one.prompt_len, one.response_len) == (3, 5)
    assert one.rejected == {"truncated": 1} and one.failed == {"timeout": 2}
    assert one.first_failed == {"timeout": "'b': slow"}


def test_table_has_a_line_per_source_and_the_reasons():
    stats = {name: ResponseStats(questions=1_000, asked=8_000, seconds=1_800.0) for name in "ab"}
    stats["b"].failed = {"timeout": 3, "server": 5}
    lines = stats_table(stats).splitlines()
    assert [line.split()[0] for line in lines] == ["source", "a", "b", "all", "failed:"]
    assert lines[3].split()[1] == "2,000" and lines[3].split()[-1] == "1.00"
    assert lines[4] == "failed: server 5, timeout 3"
