"""The record of a scored response: written and read back, with faults that name file, line and field."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.verify.check import check_answer
from data_pipeline.verify.record import ScoredResponse, read_responses

RESPONSE = "<think>3 times 4</think><answer>12</answer>"


@dataclass(frozen=True, kw_only=True)
class TimedResponse(ScoredResponse):
    seconds: float
    hedged: bool = False
    perplexity: float | None = None


def row(**changed: object) -> bytes:
    return json.dumps(json.loads(ScoredResponse(id="q7").to_json()) | changed).encode()


def test_record_round_trips() -> None:
    scored = ScoredResponse(id="q7", rollout=3, answer="12", response=RESPONSE, reward=1.0)
    line = scored.with_verdict(check_answer(RESPONSE, "12")).to_json()
    read = ScoredResponse.from_json(line)
    assert (read.accuracy, read.extracted, read.decided_by) == (1.0, "12", "exact")
    assert read.to_json() == line and line.endswith(b"\n") and line.count(b"\n") == 1


@pytest.mark.parametrize("response", ["角度是 60°\n", "half a pair \ud83d", "\x00", "", None])
def test_any_response_round_trips(response: str | None) -> None:
    scored = ScoredResponse(id="q7", response=response)
    assert ScoredResponse.from_json(scored.to_json()) == scored


def test_unchecked_record_counts_as_wrong() -> None:
    scored = ScoredResponse(id="q7", response=RESPONSE)
    assert (scored.accuracy, scored.decided_by) == (0.0, "")


def test_subclass_round_trips_and_keeps_its_type() -> None:
    timed = TimedResponse(id="q7", seconds=2, hedged=True).with_verdict(check_answer(RESPONSE, "12"))
    assert isinstance(timed, TimedResponse)
    assert TimedResponse.from_json(timed.to_json()) == timed
    assert ScoredResponse.from_json(timed.to_json()).accuracy == 1.0, "other fields are ignored"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "Expecting value"),
        (b"not JSON", "Expecting value"),
        (b'"\xff"', "utf-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"[1, 2]", "wanted a JSON object, saw a list of 2"),
        (b"{}", "is missing"),
        (row(id=7), "id: wanted str, saw int 7"),
        (row(response=["a"]), "response: wanted str or NoneType, saw a list of 1"),
        (row(accuracy="1"), "accuracy: wanted float or int, saw str '1'"),
        (row(accuracy=None), "accuracy: wanted float or int, saw nothing"),
        (row(accuracy=True), "accuracy: wanted float or int, saw bool True"),
        (row(rollout=0.5), "rollout: wanted int, saw float 0.5"),
    ],
)
def test_fault_names_file_line_and_field(tmp_path: Path, line: bytes, fault: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(row() + b"\n" + line + b"\n" + row())
    records = read_responses(path)
    assert next(records).id == "q7"
    with pytest.raises(ValueError, match="answers.jsonl:2: ") as caught:
        next(records)
    assert fault in str(caught.value)


def test_subclass_field_is_required(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(row())
    with pytest.raises(ValueError, match="answers.jsonl:1: seconds is missing"):
        list(read_responses(path, TimedResponse))
