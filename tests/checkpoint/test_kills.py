"""A run that is killed 30 times, at random moments, ends with the same weights as one that was not."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from launch.ranks.launcher import LocalRank, start_ranks
from megatron_omr.checkpoint.manifest import check_files, read_manifest
from megatron_omr.config import CheckpointConfig, LogConfig, OptimConfig, SFTConfig
from megatron_omr.train.run_folder import list_checkpoints
from tests.helpers.processes import wait_until
from tests.helpers.ranks import run_ranks
from tests.helpers.sft_runs import read_metrics, sft_rank

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

NUM_KILLS = 30
STEPS = 40
SEED = 11

Victim = Literal["all", "rank 0", "rank 1", "writer"]


@dataclass(frozen=True)
class Kill:
    """A SIGKILL: how long after which moment, and of which processes."""

    moment: str
    delay: float  # seconds
    victim: Victim


@dataclass(frozen=True)
class Hit:
    """What was killed, and whether the whole run ended of that by itself."""

    victim: str
    ended: bool


MOMENTS = {  # what is waited for, and the longest delay after it in seconds
    "start": 0.6,  # about as long as the trainer takes to be built
    "training": 0.1,
    "writing": 0.02,
    "manifest": 0.0,
    "renamed": 0.005,
    "removal": 0.0,
}


def plan_kills(draw: random.Random) -> list[Kill]:
    """Returns the kills of the test: the last two while the Hugging Face folder is written."""
    moments = [*MOMENTS] * (NUM_KILLS // len(MOMENTS))
    draw.shuffle(moments)
    kills = []
    for moment in moments[:-2]:
        victims: list[Victim] = ["all", "rank 0", "rank 1"]
        if moment in ("writing", "manifest"):
            victims += ["writer"] * 6
        kills.append(Kill(moment, draw.uniform(0, MOMENTS[moment]), draw.choice(victims)))
    return [*kills, Kill("export", 0.0, "all"), Kill("export", 0.01, "rank 0")]


class Watch:
    """Tells what has happened in a run that starts now."""

    def __init__(self, run: Path) -> None:
        self._folder, self._log, self._hf = run / "checkpoints", run / "metrics.jsonl", run / ".hf.partial"
        self._done = newest_step(self._folder)
        self._old_log = self._log.stat().st_ino if self._log.exists() else 0

    def has_come(self, moment: str) -> bool:
        """Returns true in the moment, and when it will hardly come: some last less than the time between looks."""
        folder, log = self._folder, self._log
        conditions: dict[str, Callable[[], object]] = {
            "start": lambda: True,
            "training": lambda: (
                log.exists() and log.stat().st_ino != self._old_log and count(log) > self._done
            ),
            "writing": lambda: list(folder.glob(".step-*.partial")),
            "manifest": lambda: list(folder.glob(".step-*.partial/state.json")),
            "renamed": lambda: newest_step(folder) > self._done,
            "removal": lambda: list(folder.glob(".step-*.old")),
            "export": self._hf.exists,
        }
        return bool(conditions[moment]()) or (moment != "export" and self.is_far())

    def is_far(self) -> bool:
        """Returns true when the run has come so far that the next kills might miss it."""
        return newest_step(self._folder) > self._done + 2


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:]) for path in list_checkpoints(folder)), default=0)


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def find_writers(ranks: Sequence[LocalRank]) -> list[int]:
    """Returns the processes that ranks have forked and that still run; without psutil's milliseconds."""
    found: list[int] = []
    for rank in ranks:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{rank.process.pid}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
    return [pid for pid in found if is_running(pid)]


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def strike(victim: Victim, ranks: Sequence[LocalRank]) -> str:
    """Kills; returns what: all ranks where there is no writer."""
    pids = [rank.process.pid or 0 for rank in ranks]
    writers = find_writers(ranks) if victim == "writer" else []
    if writers:
        hit = writers[:1]
    elif victim in ("rank 0", "rank 1"):
        hit = [pids[int(victim[-1])]]
    else:
        victim, hit = "all", pids
    for pid in hit:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return victim


def run_until_killed(config: SFTConfig, kill: Kill) -> Hit:
    """Starts or continues the run, and kills it."""
    watch = Watch(Path(config.run))

    def all_dead() -> bool:
        return not any(rank.process.is_alive() for rank in ranks)

    with start_ranks(sft_rank, 2, config) as ranks:
        wait_until(lambda: watch.has_come(kill.moment) or all_dead(), every=0.0005)
        wait(kill.delay, watch.is_far)
        if all_dead():
            return Hit("nothing", ended=True)
        victim = strike(kill.victim, ranks)
        # the others go on until they notice, a writer's at their next step, which may take long beside other tests
        wait({"all": 0, "writer": 10}.get(victim, 0.5), lambda: all_dead() or watch.is_far())
        return Hit(victim, ended=all_dead())  # leaving the block kills the rest


def wait(seconds: float, unless: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    wait_until(lambda: unless() or time.monotonic() >= deadline, every=0.002)


@pytest.fixture(scope="module")
def config(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> SFTConfig:
    shards = tmp_path_factory.mktemp("shards") / "train"
    write_shards(digit_samples("train", 60, seed=3, cell=28), shards)
    return SFTConfig(
        run="",
        model=str(tiny_hf),
        steps=STEPS,
        precision="fp32",
        loader=LoaderConfig(shards=str(shards), global_batch_size=2, pack_length=512),
        image=ImageConfig(min_pixels=784),
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        checkpoint=CheckpointConfig(every=1, keep=2),
        log=LogConfig(tensorboard=False),
    )


def test_thirty_kills_end_in_the_same_weights(config: SFTConfig, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_ranks(sft_rank, 2, replace(config, run=str(whole), checkpoint=CheckpointConfig(every=STEPS)))
    draw = random.Random(SEED)
    hits, num_torn = [], 0
    for kill in plan_kills(draw):
        checkpoint = CheckpointConfig(every=draw.choice((1, 2)), keep=draw.choice((1, 2)))
        hits.append(run_until_killed(replace(config, run=str(killed), checkpoint=checkpoint), kill))
        num_torn += bool(list(killed.glob("checkpoints/.step-*.partial")))
        for complete in list_checkpoints(killed / "checkpoints"):
            check_files(complete, read_manifest(complete))
        print(f"{kill} -> {hits[-1]}, {newest_step(killed / 'checkpoints')} steps, {num_torn} inside a save")
    assert killed.joinpath("checkpoints").exists() and not (killed / "hf").exists()
    run_ranks(sft_rank, 2, replace(config, run=str(killed)))

    assert Counter(hit.victim for hit in hits).keys() == {"all", "rank 0", "rank 1", "writer"}
    assert num_torn >= 5  # 10 were seen
    assert any(hit.ended for hit in hits if hit.victim == "writer")
    weights = "hf/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    names = ("step", "loss", "grad_norm", "lr")  # each step once: what a killed run wrote ahead was dropped
    rows, wanted = ([[row[n] for n in names] for row in read_metrics(run)] for run in (killed, whole))
    assert rows == wanted and len(rows) == STEPS
    assert not [path for path in killed.rglob(".*") if path.name != ".metadata"]
