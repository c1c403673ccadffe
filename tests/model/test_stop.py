"""A run that gets SIGUSR1 ends its step, saves, and exits with a code of its own; the same command continues it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from launch.ranks.launcher import run_local, start_ranks
from megatron_omr.config import CheckpointConfig, LogConfig, OptimConfig, SFTConfig
from megatron_omr.train.run_folder import list_checkpoints
from megatron_omr.train.stop import RESUMABLE, STOP_SIGNAL, hold_stop, stop_exits
from tests.helpers.processes import wait_until
from tests.helpers.ranks import run_ranks
from tests.helpers.sft_runs import logged_sft_rank, read_metrics, sft_rank, stderr_of

STEPS = 30


def send(number: int = STOP_SIGNAL) -> None:
    os.kill(os.getpid(), number)


def test_signal_waits_until_it_is_looked_for():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with hold_stop() as stop:
        assert not stop.is_made()
        send()
        assert stop.is_made()
        with hold_stop() as inner:  # the function within the command
            assert inner.is_made()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    with hold_stop() as stop:
        assert not stop.is_made(), "the one before has taken it"


def test_signal_that_a_foreign_thread_gets_is_noted():
    """Threads that a library started before the signal was blocked do not block it."""
    with hold_stop() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [STOP_SIGNAL])
        send()
        signal.pthread_sigmask(signal.SIG_BLOCK, [STOP_SIGNAL])
        assert STOP_SIGNAL not in signal.sigpending() and stop.is_made()
        with hold_stop() as inner:
            assert inner.is_made()


def test_processes_that_a_run_starts_do_not_die_of_the_signal():
    with hold_stop():
        child = subprocess.Popen(["sleep", "60"])
    child.send_signal(STOP_SIGNAL)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    child.kill()
    assert child.wait() == -signal.SIGKILL


def test_command_that_loses_little_ends_at_once(capfd: pytest.CaptureFixture[str]):
    signal.pthread_sigmask(signal.SIG_BLOCK, [STOP_SIGNAL])  # as a parent may leave it
    cleaned = False
    with pytest.raises(SystemExit) as leave, stop_exits():
        try:
            send()
        finally:
            send()  # once more, while it ends what it started
            cleaned = True
    assert leave.value.code == RESUMABLE == 75 and cleaned
    assert capfd.readouterr().err == "omr: stopped by SIGUSR1; the same command continues\n"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [STOP_SIGNAL])


@pytest.fixture(scope="module")
def config(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> SFTConfig:
    shards = tmp_path_factory.mktemp("shards") / "train"
    write_shards(digit_samples("train", 40, seed=3, cell=28), shards)
    return SFTConfig(
        run="",
        model=str(tiny_hf),
        steps=STEPS,
        precision="fp32",
        loader=LoaderConfig(shards=str(shards), global_batch_size=2, pack_length=512),
        image=ImageConfig(min_pixels=784),
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        checkpoint=CheckpointConfig(every=STEPS),
        log=LogConfig(tensorboard=False),
    )


@contextmanager
def stop_after(config: SFTConfig, steps: int) -> Iterator[None]:
    """Sends the signal to this process when the run has done so many steps."""
    log = Path(config.run) / "metrics.jsonl"

    def watch() -> None:
        wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= steps, every=0.001)
        send()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.heavy
def test_stopped_runs_continue_to_the_same_weights(config: SFTConfig, tmp_path: Path) -> None:
    """Stopped first by a signal that the launcher forwards, then by one that a single rank gets."""
    whole, run = (replace(config, run=str(tmp_path / name)) for name in ("whole", "run"))
    run_ranks(sft_rank, 2, whole)
    folder = Path(run.run) / "checkpoints"

    with pytest.raises(SystemExit) as leave, hold_stop(), stop_after(run, 4):
        run_local(logged_sft_rank, 2, run, timeout=120, forward=[STOP_SIGNAL])
    (first,) = list_checkpoints(folder)
    steps = len(read_metrics(Path(run.run)))
    assert leave.value.code == RESUMABLE and first.name == f"step-{steps:08d}" and 4 <= steps < STEPS
    line = (
        f"omr: stopped by SIGUSR1: {run.run} is saved after {steps} of 30 steps; the same command continues\n"
    )
    said = "".join(stderr_of(run, rank).read_text() for rank in range(2))
    assert said.count(line) == 1
    assert not (Path(run.run) / "hf").exists() and not list(folder.glob(".*"))

    with start_ranks(sft_rank, 2, run, blocked=[STOP_SIGNAL]) as ranks:
        wait_until(lambda: len(read_metrics(Path(run.run))) > steps)
        os.kill(ranks[1].process.pid or 0, STOP_SIGNAL)
        for rank in ranks:
            rank.process.join(60)
        assert [rank.process.exitcode for rank in ranks] == [RESUMABLE] * 2
    assert first < list_checkpoints(folder)[-1] < folder / f"step-{STEPS:08d}"

    run_ranks(sft_rank, 2, run)
    weights = "hf/model.safetensors"
    assert (Path(run.run) / weights).read_bytes() == (Path(whole.run) / weights).read_bytes()
    names = ("step", "loss", "grad_norm", "lr")
    rows, wanted = ([[row[n] for n in names] for row in read_metrics(Path(c.run))] for c in (run, whole))
    assert rows == wanted and len(rows) == STEPS
