"""The log of a shard's responses: continued after every kind of end, by one process at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.distill.response_log import ResponseLog
from data_pipeline.distill.responses import TeacherResponse


def test_log_continues_after_every_kind_of_end(tmp_path: Path):
    path = tmp_path / "responses" / "000000.jsonl"
    responses = [TeacherResponse(id=id, rollout=n, response=f"{id}{n}\n") for id in "ba" for n in (1, 0)]
    log = ResponseLog(path)
    for response in responses[:3]:
        log.add(response)
    log.close()
    file = path.with_name("000000.log")
    file.write_bytes(file.read_bytes()[:-1])  # the last line lacks its end
    log = ResponseLog(path)
    assert [response.key in log for response in responses] == [True, True, False, False]
    for response in (*responses[2:], replace(responses[0], response="later")):
        log.add(response)
    log.close()
    log = ResponseLog(path)  # nothing of the torn line is left
    assert log.read(("b", 1)).response == "later"
    keys = log.keys(["b", "a"])
    assert keys == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]
    log.finish(([log.read(key)] for key in keys), sha256="", k=2, checker="strict")
    assert not file.exists() and b"later" in path.read_bytes()

    log = ResponseLog(path)  # more is asked for
    assert all(response.key in log for response in responses) and not path.exists()
    log.close()
    file.write_bytes(b"{}\n" + file.read_bytes())
    with pytest.raises(ValueError, match=r"000000\.log:1: .*; delete that line"):
        ResponseLog(path)


def test_only_one_process_writes_a_shard(tmp_path: Path):
    path, file = tmp_path / "000000.jsonl", tmp_path / "000000.log"
    summary = tmp_path / "000000.summary.json"
    log = ResponseLog(path)
    log.add(TeacherResponse(id="a", response="x"))
    summary.write_text("the other's")
    with pytest.raises(ValueError, match="another process is writing"):
        ResponseLog(path)
    assert summary.exists(), "a process without the lock removes nothing"
    late = file.open("a+b")  # opened before the first one's end
    log.finish(iter([[log.read(("a", 0))]]), sha256="", k=1, checker="strict")
    done = path.read_bytes(), summary.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: late)
        with pytest.raises(ValueError, match="another process just finished"):
            ResponseLog(path)
    assert (path.read_bytes(), summary.read_bytes()) == done and late.closed

    file.write_bytes(b"half of a copy, left by a kill")
    log = ResponseLog(path)
    assert log.read(("a", 0)).response == "x" and not summary.exists() and not path.exists()
    log.finish(iter([[log.read(("a", 0))]]), sha256="", k=1, checker="strict")
    assert (path.read_bytes(), summary.read_bytes()) == done


def test_digest_covers_every_verdict(tmp_path: Path):
    """Also those of responses that are not kept, because pass rates count them."""

    def digest(name: str, **changed: object) -> str:
        response = TeacherResponse(id="a", response="x", reason="wrong")
        log, group = ResponseLog(tmp_path / name), [replace(response, **changed)]
        return log.finish(iter([group]), sha256="", k=1, checker="strict").digest

    assert digest("0") == digest("1", seconds=3.0)
    changes = [{}, {"accuracy": 1.0}, {"response": None}, {"decided_by": "judge"}, {"reason": ""}]
    assert len({digest(str(n), **change) for n, change in enumerate(changes, 2)}) == 5
