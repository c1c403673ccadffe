"""Local ranks: each knows its number, they return results, fail together with tracebacks, and end with the launcher."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline.failures import RankError, RankMistake
from launch.ranks.gpus import count_gpus, list_gpus
from launch.ranks.launcher import choose_start_method, rank_environment, run_local, start_ranks
from tests.helpers.processes import wait_until

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.heavy


def write_identity(folder: Path) -> None:
    rank, world_size, init_method = rank_environment()
    words = [rank, world_size, init_method, os.environ["LOCAL_RANK"], os.environ["OMP_NUM_THREADS"]]
    (folder / str(rank)).write_text(" ".join(map(str, words)))


def sum_ranks(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    rank, world_size, init_method = rank_environment()
    dist.init_process_group("gloo", rank=rank, world_size=world_size, init_method=init_method)
    total = torch.tensor([rank + 1])
    dist.all_reduce(total)
    (folder / f"sum{rank}").write_text(str(total.item()))
    dist.destroy_process_group()


def return_much() -> tuple[int, bytes]:
    return rank_environment()[0], bytes(1_000_000)


def fail_on_rank_1() -> None:
    if rank_environment()[0] == 1:
        raise RuntimeError("the disk of rank 1 is full")
    time.sleep(300)


def wait_for_peers() -> None:
    import torch.distributed as dist

    rank, world_size, init_method = rank_environment()
    dist.init_process_group("gloo", rank=rank, world_size=world_size, init_method=init_method)
    dist.barrier()
    if rank != 1:
        dist.barrier()  # fails when rank 1 has ended


def mistake_on_rank_1() -> None:
    wait_for_peers()
    raise ValueError("steps=0 must be at least 1")


def mistake_on_all_ranks() -> None:
    raise ValueError("steps=0 must be at least 1")


def full_disk_on_rank_1(folder: Path) -> None:
    wait_for_peers()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def kill_rank_1_of_a_collective() -> None:
    wait_for_peers()
    os.kill(os.getpid(), signal.SIGKILL)


def exit_with_3() -> None:
    sys.exit(3)


def exit_without_its_child(folder: Path) -> None:
    child = subprocess.Popen(["sleep", "300"])
    (folder / f"{child.pid}.pid").touch()
    os._exit(1)


def kill_rank_0() -> None:
    if rank_environment()[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)


def start_a_child_and_sleep(folder: Path) -> None:
    child = subprocess.Popen(["sleep", "300"])
    (folder / f"{os.getpid()}.pid").touch()
    (folder / f"{child.pid}.pid").touch()
    time.sleep(300)


def pids(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.pid")]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_each_rank_has_its_identity(tmp_path: Path):
    run_local(write_identity, 2, tmp_path, timeout=120)
    first, second = ((tmp_path / name).read_text().split() for name in "01")
    assert (first[:2], second[:2]) == (["0", "2"], ["1", "2"])
    assert first[2] == second[2] and first[2].startswith("file://")
    assert (first[3], second[3]) == ("0", "1")
    assert first[4] == os.environ["OMP_NUM_THREADS"]


def test_ranks_communicate(tmp_path: Path):
    run_local(sum_ranks, 2, tmp_path, timeout=120)
    assert [(tmp_path / name).read_text() for name in ("sum0", "sum1")] == ["3", "3"]


def test_results_come_in_the_order_of_the_ranks():
    assert run_local(return_much, 3, timeout=120) == [(rank, bytes(1_000_000)) for rank in range(3)]


def test_result_that_cannot_be_pickled_is_a_failure():
    with pytest.raises(RankError, match="rank 0 failed"):
        run_local(threading.Lock, 1, timeout=120)


def test_lost_result_is_an_error():
    with pytest.raises(RankError, match="rank 0, rank 1 ended without a result"):
        run_local(_end_in_silence, 2)


def _end_in_silence() -> None:
    os._exit(0)


def test_leaving_the_block_kills_ranks_and_their_children(tmp_path: Path):
    with start_ranks(start_a_child_and_sleep, 2, tmp_path) as ranks:
        wait_until(lambda: len(pids(tmp_path)) == 4)
        assert all(rank.process.is_alive() for rank in ranks)
    wait_until(lambda: not any(map(is_running, pids(tmp_path))))


def test_failure_ends_all_ranks_and_shows_the_cause():
    with pytest.raises(
        RankError, match=r"(?s)^rank 1 failed:\nTraceback.*the disk of rank 1 is full"
    ) as failure:
        run_local(fail_on_rank_1, 2, timeout=120)
    assert "rank 0" not in str(failure.value)


def test_killed_rank_is_named():
    with pytest.raises(RankError, match="rank 0 was killed by SIGKILL"):
        run_local(kill_rank_0, 2, timeout=120)


@pytest.mark.parametrize("fn", [mistake_on_rank_1, mistake_on_all_ranks])
def test_mistake_of_the_user_is_its_message_alone(fn: Callable[[], None]):
    """Not what gloo says on the other ranks about a closed connection."""
    with pytest.raises(RankMistake) as failure:
        run_local(fn, 2, timeout=120)
    assert str(failure.value) == "steps=0 must be at least 1"
    assert isinstance(failure.value, ValueError)


def test_full_disk_is_one_line_that_names_the_rank(tmp_path: Path):
    with pytest.raises(RankError) as failure:
        run_local(full_disk_on_rank_1, 2, tmp_path, timeout=120)
    assert str(failure.value) == f"rank 1: [Errno 28] No space left on device: '{tmp_path}'"


def test_killed_rank_is_the_cause_not_its_peers():
    with pytest.raises(RankError) as failure:
        run_local(kill_rank_1_of_a_collective, 2, timeout=120)
    assert str(failure.value).startswith("rank 1 was killed by SIGKILL")


def test_exit_code_of_a_rank_is_passed_on():
    with pytest.raises(SystemExit) as leave:
        run_local(exit_with_3, 2, timeout=120)
    assert leave.value.code == 3


def test_child_of_a_failed_rank_is_killed(tmp_path: Path):
    with pytest.raises(SystemExit):
        run_local(exit_without_its_child, 1, tmp_path, timeout=120)
    assert len(pids(tmp_path)) == 1
    wait_until(lambda: not any(map(is_running, pids(tmp_path))))


def test_timeout_ends_ranks_and_their_children(tmp_path: Path):
    with pytest.raises(RankError, match="2 of 2 ranks were still running after 10 s"):
        run_local(start_a_child_and_sleep, 2, tmp_path, timeout=10)
    assert len(pids(tmp_path)) == 4
    wait_until(lambda: not any(map(is_running, pids(tmp_path))))


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
def test_no_rank_outlives_its_launcher(number: signal.Signals, tmp_path: Path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells turn it off behind `&`
        "from pathlib import Path\nimport tests.launch.ranks.test_launcher as t\n"
        "from launch.ranks.launcher import PRELOAD, run_local\n"
        f"PRELOAD.clear()\nrun_local(t.start_a_child_and_sleep, 2, Path({str(tmp_path)!r}))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(pids(tmp_path)) == 4)
        assert all(map(is_running, pids(tmp_path)))
        launcher.send_signal(number)
        assert launcher.wait(150) != 0
        wait_until(lambda: not any(map(is_running, pids(tmp_path))))
    finally:
        launcher.kill()


def run_as_rank(statement: str, **variables: str) -> str:
    code = f"import os\nfrom launch.ranks.launcher import rank_environment, run_local\n{statement}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_under_torchrun_the_process_is_the_rank():
    call = "run_local(lambda: print(rank_environment(), os.getpid() == here), 2)"
    said = run_as_rank(f"here = os.getpid()\n{call}", RANK="3", WORLD_SIZE="4", LOCAL_RANK="1")
    assert said == "(3, 4, 'env://') True"


def test_under_srun_the_process_is_the_rank():
    call = "run_local(lambda: print(rank_environment(), os.environ['LOCAL_RANK']), 2)"
    said = run_as_rank(
        call, SLURM_PROCID="5", SLURM_LOCALID="1", SLURM_STEP_NUM_TASKS="8", SLURM_STEP_NODELIST="here"
    )
    assert said.startswith("(5, 8, 'tcp://here:") and said.endswith(") 1")


def test_process_that_was_not_launched_is_no_rank():
    with pytest.raises(ValueError, match="start it with run_local, torchrun or srun"):
        rank_environment()


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver's tool that lists two GPUs; torch still finds none."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\necho 'NVIDIA H200, 143771 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    list_gpus.cache_clear()
    yield
    list_gpus.cache_clear()


@pytest.mark.usefixtures("two_gpus")
def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch):
    assert count_gpus() == 2 and list_gpus()[0].startswith("NVIDIA H200")
    for visible, count in {"": 0, "-1": 0, "1": 1, "0,1": 2, "0,-1": 1, "GPU-8f3a": 1}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus() == count, visible


def loaded_packages() -> tuple[int, set[str]]:
    names = {name for name in ("torch", "megatron.core") if name in sys.modules}
    return os.getppid(), names


@pytest.mark.usefixtures("two_gpus")
def test_where_there_are_gpus_no_rank_is_a_fork():
    """A fork server asks CUDA for a device while it imports, and its forks could not use one."""
    assert choose_start_method(0) == "forkserver"
    assert run_local(loaded_packages, 2, timeout=120) == [(os.getpid(), set())] * 2
