"""Ranks that stop, hang or die are named with host, phase and stack, and the others end."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.files import read_json
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from launch.ranks.launcher import start_ranks
from megatron_omr.config import CheckpointConfig, FaultConfig, LogConfig, OptimConfig, SFTConfig
from megatron_omr.faults.heartbeat import Heartbeat, Watch, clear_beats
from tests.helpers.processes import wait_until
from tests.helpers.sft_runs import logged_sft_rank, read_metrics, stderr_of

QUICK = FaultConfig(beat=0.1, silence=0.5, timeout=1.0)


def look_until(watch: Watch, seconds: float = 20) -> str:
    found: list[str] = []
    wait_until(lambda: found.append(watch.look()) or found[-1], seconds=seconds)
    return found[-1]


def look_for(watch: Watch, seconds: float) -> None:
    """Raises AssertionError if the watch reports anything in that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert watch.look() == ""
        time.sleep(0.02)


def test_ranks_that_work_idle_or_end_are_not_reported(tmp_path: Path):
    watch = Watch(tmp_path, QUICK, rank=0, world_size=3)  # the third has not begun
    with Heartbeat(tmp_path, QUICK, rank=0) as first, Heartbeat(tmp_path, QUICK, rank=1) as second:
        first.enter("idle")
        for step in range(4):
            second.enter(f"step {step}", is_limited=True)
            look_for(watch, 0.3)  # each shorter than the limit, together longer
        beat = read_json(tmp_path / "heartbeats" / "rank-00001.json")
        assert (beat["phase"], beat["host"], beat["pid"]) == ("step 3", socket.gethostname(), os.getpid())
    assert not (tmp_path / "heartbeats").exists()
    look_for(watch, 0.7)


def test_a_rank_that_does_not_begin_is_named(tmp_path: Path):
    """By a watch that knows when the ranks were started; one that has ended since has begun."""
    watch = Watch(tmp_path, QUICK, rank=0, world_size=3, begins=True)
    with Heartbeat(tmp_path, QUICK, rank=0):
        with Heartbeat(tmp_path, QUICK, rank=2):
            look_for(watch, 0.5)
        assert look_until(watch) == "rank 1 of 3 has not begun within fault.timeout=1 s"


def test_a_rank_that_failed_is_named_with_its_error(tmp_path: Path):
    with pytest.raises(RuntimeError), Heartbeat(tmp_path, QUICK, rank=1):
        raise RuntimeError("the cable is loose")
    said = look_until(Watch(tmp_path, QUICK, rank=0, world_size=2))
    assert re.match(r"rank 1 on host \S+ \(process \d+\) has given no sign of life for \d s .*", said)
    assert "last phase: failed with RuntimeError: the cable is loose; in:" in said


def test_the_rank_that_others_wait_for_is_named(tmp_path: Path):
    """Three ranks take too long: the one in another place than the two that wait for it."""
    watch = Watch(tmp_path, QUICK, rank=0, world_size=3)
    ready = threading.Barrier(4)
    end = threading.Event()

    def read_a_slow_disk() -> None:
        end.wait(20)

    def wait_for_others() -> None:
        end.wait(20)

    def rank(number: int, work: Callable[[], None]) -> None:
        with Heartbeat(tmp_path, QUICK, rank=number) as heart:
            heart.enter("step 7", is_limited=True)
            ready.wait()
            work()

    works = [wait_for_others, read_a_slow_disk, wait_for_others]
    threads = [threading.Thread(target=rank, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    ready.wait()
    said = look_until(watch)
    end.set()
    for thread in threads:
        thread.join()
    assert said.startswith("rank 1 on host") and "has been in step 7 for 1 s (fault.timeout=1); in:" in said
    first, *_ = said.split("\nrank ")
    assert "read_a_slow_disk" in first and "wait_for_others" not in first


def test_a_watch_that_could_not_look_blames_nobody(tmp_path: Path):
    """It was stopped, or waited for a disk, as long as the others may be silent."""
    watch = Watch(tmp_path, QUICK, rank=0, world_size=1)
    with Heartbeat(tmp_path, QUICK, rank=0):
        wait_until(lambda: watch.look() == "" and watch._seen)
        frozen = (tmp_path / "heartbeats" / "rank-00000.json").read_bytes()
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats" / "rank-00000.json").write_bytes(frozen)
    time.sleep(0.7)
    assert watch.look() == ""
    assert "no sign of life" in look_until(watch)
    clear_beats(tmp_path)
    look_for(watch, 0.7)


def test_silence_must_leave_room_for_several_signs():
    with pytest.raises(ValueError, match=r"fault.silence=10 must be at least 15"):
        FaultConfig(silence=10)
    with pytest.raises(ValueError, match=r"fault.timeout=30 must be at least 60"):
        FaultConfig(timeout=30)


def test_a_sign_costs_little(tmp_path: Path):
    """A thousandth of the time between two by default; 0.2 ms were seen, with a look at 64 other ranks 4 ms."""
    config = FaultConfig()
    with Heartbeat(tmp_path, config, rank=0) as heart:
        began = time.thread_time()
        for _ in range(100):
            heart._write()
        assert (time.thread_time() - began) / 100 < config.beat / 1000


@pytest.fixture(scope="module")
def config(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> SFTConfig:
    shards = tmp_path_factory.mktemp("shards") / "train"
    write_shards(digit_samples("train", 40, seed=3, cell=28), shards)
    return SFTConfig(
        run="",
        model=str(tiny_hf),
        steps=1000,
        precision="fp32",
        loader=LoaderConfig(shards=str(shards), global_batch_size=2, pack_length=512),
        image=ImageConfig(min_pixels=784),
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(tensorboard=False),
        fault=FaultConfig(beat=0.2, silence=2, timeout=60),
    )


@pytest.mark.heavy
@pytest.mark.parametrize("victim", [0, 1])
def test_stopped_rank_is_named_and_the_others_end(victim: int, config: SFTConfig, tmp_path: Path) -> None:
    """By rank 0, which watches all, and by the others, which watch rank 0."""
    run = tmp_path / "run"
    config = replace(config, run=str(run))
    with start_ranks(logged_sft_rank, 2, config) as ranks:
        pids = [rank.process.pid or 0 for rank in ranks]
        wait_until(lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run)) > 2)
        os.kill(pids[victim], signal.SIGSTOP)
        stopped = time.monotonic()
        ranks[1 - victim].process.join(60)
        seconds = time.monotonic() - stopped
        assert ranks[1 - victim].process.exitcode == 1
    assert 1.5 < seconds < 12  # the silence since its last sign, and the time to end
    said = stderr_of(config, 1 - victim).read_text()
    line, *stack = said.partition("omr: error: ")[2].splitlines()
    seen = re.fullmatch(
        rf"rank {victim} on host {socket.gethostname()} \(process {pids[victim]}\) has given no sign of life for "
        r"[23] s \(fault.silence=2\); last phase: step \d+; in:",
        line,
    )
    assert seen, line
    assert any("megatron_omr/sft.py" in frame for frame in stack)


def sft_rank_that_hangs(config: SFTConfig) -> None:
    """Rank 1 waits in its third step for something that does not come."""
    import megatron_omr.sft as sft

    exchange, calls = sft.exchange, []

    def wait_for_a_lost_lock(*args):
        calls.append(None)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            threading.Event().wait(300)
        return exchange(*args)

    sft.exchange = wait_for_a_lost_lock
    logged_sft_rank(config)


@pytest.mark.heavy
def test_rank_that_hangs_in_a_step_is_named(config: SFTConfig, tmp_path: Path) -> None:
    """It gives signs of life, and the others wait for it in a reduction."""
    config = replace(config, run=str(tmp_path / "run"), fault=FaultConfig(beat=0.2, silence=1, timeout=3))
    with start_ranks(sft_rank_that_hangs, 2, config) as ranks:
        ranks[0].process.join(60)
        assert ranks[0].process.exitcode == 1
    said = stderr_of(config, 0).read_text().partition("omr: error: ")[2]
    first, waiting = said.split("\nrank ")
    assert re.match(r"rank 1 on host .* has been in step 2 for 3 s \(fault.timeout=3\); in:\n", first)
    assert "wait_for_a_lost_lock" in first and "sum_over_ranks" in waiting


def sft_rank_that_fails(config: SFTConfig) -> None:
    """As a cluster's launcher starts it; rank 1 fails in its third step."""
    import multiprocessing

    import megatron_omr.sft as sft

    multiprocessing.parent_process = lambda: None
    exchange, calls = sft.exchange, []

    def fail(*args):
        calls.append(None)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            raise RuntimeError("the GPU fell off the bus")
        return exchange(*args)

    sft.exchange = fail
    logged_sft_rank(config)


@pytest.mark.heavy
def test_ranks_that_fail_after_another_say_so_instead_of_their_own_errors(
    config: SFTConfig, tmp_path: Path
) -> None:
    """Where no launcher of ours collects what ranks raise."""
    with start_ranks(sft_rank_that_fails, 2, replace(config, run=str(tmp_path / "run"))) as ranks:
        for rank in ranks:
            rank.process.join(60)
            rank.read()
        said = [rank.outcome.failure.traceback for rank in ranks if rank.outcome and rank.outcome.failure]
    assert said[0].endswith("RankError: rank 0 ended because rank 1 had failed\n") and "closed" not in said[0]
    assert said[1].endswith("RuntimeError: the GPU fell off the bus\n")
