"""Every executor leaves the same files, and killed workers lose nothing."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from data_pipeline.config import WorkConfig
from data_pipeline.errors import BadSample
from data_pipeline.parts import MAX_BREAKS, run_parts


@dataclass(frozen=True, kw_only=True)
class Count:
    part: int
    dropped: dict[str, int]


def write_square(out: Path, part: int) -> Count:
    draft = out / f".{part}.{os.getpid()}"
    draft.write_text(str(part**2))
    draft.replace(out / str(part))
    return Count(part=part, dropped={"odd": part % 2})


def die_once(out: Path, part: int) -> Count:
    """write_square; parts 2 and 5 kill their process the first time, as an out-of-memory killer would."""
    mark = out / f"died-{part}"
    if part in (2, 5) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write_square(out, part)


def die(part: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_at_3(part: int) -> int:
    if part == 3:
        raise ValueError("part 3 is wrong")
    return part


def raise_bad_sample(part: int) -> None:
    raise BadSample("text", f"part {part}")


@pytest.fixture
def work(request: pytest.FixtureRequest) -> WorkConfig:
    if request.param.executor == "ray":
        request.getfixturevalue("ray_session")
    return request.param


RAY = pytest.param(WorkConfig(workers=2, executor="ray"), marks=pytest.mark.heavy, id="ray")
EXECUTORS = [
    pytest.param(WorkConfig(), id="inline"),
    pytest.param(WorkConfig(workers=3), id="processes"),
    RAY,
]


@pytest.mark.parametrize("work", EXECUTORS, indirect=True)
def test_results_come_in_order_and_files_are_the_same(work: WorkConfig, tmp_path: Path):
    results = run_parts(partial(write_square, tmp_path), range(9), work=work)
    assert results == [Count(part=part, dropped={"odd": part % 2}) for part in range(9)]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(part): str(part**2) for part in range(9)
    }


@pytest.mark.parametrize("work", EXECUTORS[1:], indirect=True)
def test_a_killed_worker_loses_nothing(work: WorkConfig, tmp_path: Path):
    results = run_parts(partial(die_once, tmp_path), range(8), work=work)
    assert [result.part for result in results] == list(range(8))
    assert {int(path.name): int(path.read_text()) for path in tmp_path.glob("[0-9]*")} == {
        part: part**2 for part in range(8)
    }
    assert (tmp_path / "died-2").exists() and (tmp_path / "died-5").exists()


@pytest.mark.parametrize("work", EXECUTORS[1:], indirect=True)
def test_parts_that_always_kill_their_worker_stop_the_stage(work: WorkConfig):
    with pytest.raises(RuntimeError, match=f"{MAX_BREAKS} times .*a worker died"):
        run_parts(die, range(4), work=work)


@pytest.mark.parametrize("work", EXECUTORS, indirect=True)
def test_an_exception_reaches_the_caller(work: WorkConfig):
    with pytest.raises(ValueError, match="part 3 is wrong"):
        run_parts(fail_at_3, range(6), work=work)


@pytest.mark.parametrize("work", EXECUTORS, indirect=True)
def test_a_bad_sample_reaches_the_caller_with_its_reason(work: WorkConfig):
    with pytest.raises(BadSample, match="text: part"):
        run_parts(raise_bad_sample, range(2), work=work)


@pytest.mark.parametrize("work", EXECUTORS, indirect=True)
def test_no_parts_give_no_results(work: WorkConfig):
    assert run_parts(fail_at_3, [], work=work) == []
