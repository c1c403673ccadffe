"""Parts of a stage give the same files whatever runs them, and a killed worker loses nothing."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from data_pipeline.errors import BadSample
from data_pipeline.parts import MAX_BREAKS, run_parts
from data_pipeline.ray_session import start_ray, stop_ray


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a part of these tests returns."""

    part: int
    dropped: dict[str, int]


def write_square(out: Path, part: int) -> Count:
    draft = out / f".{part}.{os.getpid()}"
    draft.write_text(str(part**2))
    draft.replace(out / str(part))
    return Count(part=part, dropped={"odd": part % 2})


def dies_once(out: Path, part: int) -> Count:
    """Parts 2 and 5 kill their process the first time, as an out-of-memory killer would."""
    mark = out / f"died-{part}"
    if part in (2, 5) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write_square(out, part)


def dies_always(part: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_at_fault(part: int) -> int:
    if part == 3:
        raise ValueError("part 3 is at fault")
    return part


def is_bad(part: int) -> None:
    raise BadSample("text", f"part {part}")


@pytest.fixture(scope="module")
def on_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # where Ray's workers find this module
        start_ray()
    yield
    stop_ray()


EXECUTORS = [("local", 1), ("local", 3), ("ray", 2)]


@pytest.mark.parametrize(("executor", "workers"), EXECUTORS)
def test_results_come_in_order_and_files_are_the_same(executor, workers, tmp_path, on_ray):
    work = partial(write_square, tmp_path)
    results = run_parts(work, range(9), executor=executor, workers=workers)
    assert results == [Count(part=part, dropped={"odd": part % 2}) for part in range(9)]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(part): str(part**2) for part in range(9)
    }


@pytest.mark.parametrize(("executor", "workers"), [("local", 2), ("ray", 2)])
def test_a_killed_worker_loses_nothing(executor, workers, tmp_path, on_ray):
    results = run_parts(partial(dies_once, tmp_path), range(8), executor=executor, workers=workers)
    assert [result.part for result in results] == list(range(8))
    assert {int(path.name): int(path.read_text()) for path in tmp_path.glob("[0-9]*")} == {
        part: part**2 for part in range(8)
    }
    assert (tmp_path / "died-2").exists() and (tmp_path / "died-5").exists()


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_parts_that_always_kill_their_worker_end_the_stage(executor, on_ray):
    with pytest.raises(RuntimeError, match=f"{MAX_BREAKS} times .*a worker died"):
        run_parts(dies_always, range(4), executor=executor, workers=2)


@pytest.mark.parametrize(("executor", "workers"), EXECUTORS)
def test_an_exception_reaches_the_caller(executor, workers, on_ray):
    with pytest.raises(ValueError, match="part 3 is at fault"):
        run_parts(is_at_fault, range(6), executor=executor, workers=workers)


@pytest.mark.parametrize(("executor", "workers"), EXECUTORS)
def test_a_bad_sample_travels(executor, workers, on_ray):
    with pytest.raises(BadSample, match="text: part"):
        run_parts(is_bad, range(2), executor=executor, workers=workers)


def test_no_parts_and_no_workers(on_ray):
    assert run_parts(is_at_fault, []) == [] == run_parts(is_at_fault, [], executor="ray", workers=0)
    with pytest.raises(ValueError, match="workers=0"):
        run_parts(is_at_fault, [1], workers=0)
