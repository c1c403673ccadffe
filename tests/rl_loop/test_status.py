"""What a run writes for `omr watch`, as the page reads it."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from launch.watch.feed import RunFeed
from launch.watch.records import EngineStatus, LoggedWarning, RunStatus
from rl.modes.status import StatusWriter
from rl.rollout.calls import EngineState
from tests.helpers.processes import wait_until

log = logging.getLogger("rl.loop")

ENGINE = EngineState(
    number=2,
    address="10.0.0.1",
    state="generating",
    version=3,
    prompts=4,
    running=9,
    tokens=700,
    tokens_per_second=float("nan"),
)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.modes.status.EVERY", 0.01)


def read(run: Path) -> RunStatus | None:
    return RunFeed(run, "run").snapshot().status


def phase(run: Path) -> str:
    status = read(run)
    return status.phase if status else "none"


def test_page_reads_what_the_run_does(tmp_path: Path) -> None:
    with StatusWriter(tmp_path, steps=5) as writer:
        wait_until(lambda: phase(tmp_path) == "start")
        writer.states, writer.groups = (lambda: [ENGINE]), (lambda: {"ready": 1})
        timer = writer.time_step(4)
        with timer.phase("train"):
            wait_until(lambda: phase(tmp_path) == "train")
        wait_until(lambda: phase(tmp_path) == "")
        log.warning("engine %d is slow", 2)
        wait_until(lambda: (status := read(tmp_path)) and status.warnings)
        status = read(tmp_path)
    assert status is not None and status.step == 4 and status.steps == 5 and status.groups == {"ready": 1}
    assert abs(status.time - time.time()) < 60 and status.started <= status.phase_since <= status.time
    numbers = {"version": 3, "prompts": 4, "running": 9, "tokens": 700, "tokens_per_second": 0.0}
    assert status.engines == (EngineStatus(number=2, state="generating", address="10.0.0.1", **numbers),)
    assert [each.text for each in status.warnings] == ["engine 2 is slow"]
    assert isinstance(status.warnings[0], LoggedWarning) and timer.seconds()["seconds_train"] > 0
    ended = read(tmp_path)
    assert ended is not None and (ended.ended, ended.reason, ended.engines) == ("done", "", ())


def test_end_says_how(tmp_path: Path) -> None:
    with StatusWriter(tmp_path, steps=5) as writer:
        writer.time_step(2)
    stopped = read(tmp_path)
    assert stopped is not None and stopped.ended == "stopped"
    with pytest.raises(RuntimeError), StatusWriter(tmp_path, steps=5):
        raise RuntimeError("engines keep dying")
    failed = read(tmp_path)
    assert failed is not None and (failed.ended, failed.reason) == (
        "failed",
        "RuntimeError: engines keep dying",
    )


def test_run_that_has_done_its_steps_before_is_done(tmp_path: Path) -> None:
    for steps_done, ended in ((5, "done"), (4, "stopped")):
        with StatusWriter(tmp_path, steps=5) as writer:
            writer.resume(steps_done)
        status = read(tmp_path)
        assert status is not None and status.ended == ended


def test_record_that_cannot_be_formatted_does_not_reach_who_logs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's raise
    with StatusWriter(tmp_path, steps=5):
        log.warning("%s of %s", 1)
        log.warning("the next")
    texts = [each["text"] for each in json.loads((tmp_path / "status.json").read_text())["warnings"]]
    assert texts == ["the next"] and "Logging error" in capsys.readouterr().err


def test_state_that_cannot_be_read_once_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> list[EngineState]:
        raise RuntimeError("changed size during iteration")

    with StatusWriter(tmp_path, steps=5) as writer:
        writer.states = fail
        wait_until(lambda: caplog.messages)
        writer.states = lambda: [ENGINE]
        wait_until(lambda: (status := read(tmp_path)) and status.engines)
    assert len(caplog.messages) == 1 and "RuntimeError: changed size" in caplog.messages[0]


def test_warnings_are_printed_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with StatusWriter(tmp_path, steps=5):
        log.warning("once")
        logging.getLogger().addHandler(logging.NullHandler())
        log.warning("by another handler")
    assert capsys.readouterr().err == "once\n"
    assert [each["text"] for each in json.loads((tmp_path / "status.json").read_text())["warnings"]] == [
        "once",
        "by another handler",
    ]


def test_file_that_cannot_be_written_is_named_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").touch()
    with StatusWriter(tmp_path / "run", steps=5):
        wait_until(lambda: caplog.messages)
        time.sleep(0.05)
    assert len(caplog.messages) == 1 and "omr watch will not see the state of the run" in caplog.messages[0]
