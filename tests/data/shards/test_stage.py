"""Stages on real shards: dropped samples are listed, killed workers lose nothing, other folders stay untouched."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import WorkConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.stage import Chain, Drop, StageReport, run_stage
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Sample


def only_sums(samples: Iterator[Sample], drop: Drop, part: int) -> Iterator[Sample]:
    for sample in samples:
        if sample.metadata["kind"] == "sum":
            yield sample
        else:
            drop(sample, str(sample.metadata["kind"]))


def killed_once(marks: Path, samples: Iterator[Sample], drop: Drop, part: int) -> Iterator[Sample]:
    """only_sums; the worker of parts 1 and 3 is killed in the middle of its first attempt."""
    for number, sample in enumerate(only_sums(samples, drop, part)):
        mark = marks / str(part)
        if part in (1, 3) and number == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield sample


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "shards"
    write_shards(digit_samples("train", 60, 0), folder, ShardConfig(samples_per_shard=12))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(
    source: Path, out: Path, chain: Chain = only_sums, *, kind: str = "sum", **options: Any
) -> StageReport:
    return run_stage(chain, str(source), str(out), settings={"kind": kind}, **options)


def test_dropped_samples_are_counted_and_listed(source: Path, tmp_path: Path):
    report = run(source, tmp_path / "out")
    samples = list(read_shards(source))
    kept = [sample.id for sample in samples if sample.metadata["kind"] == "sum"]
    assert [sample.id for sample in read_shards(tmp_path / "out")] == kept and report.kept == len(kept)
    lists = [json.loads(path.read_text())["dropped"] for path in sorted((tmp_path / "out/dropped").iterdir())]
    named = [pair for one in lists for pair in one]
    assert named == [[s.id, s.metadata["kind"]] for s in samples if s.metadata["kind"] != "sum"]
    assert sum(report.dropped.values()) == len(named) and "sum" not in report.dropped


def test_killed_workers_lose_nothing(source: Path, tmp_path: Path):
    check_killed_workers(source, tmp_path, WorkConfig(workers=2))


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_session")
def test_killed_workers_lose_nothing_on_ray(source: Path, tmp_path: Path):
    check_killed_workers(source, tmp_path, WorkConfig(workers=2, executor="ray"))


def check_killed_workers(source: Path, tmp_path: Path, work: WorkConfig) -> None:
    run(source, tmp_path / "whole")
    marks = tmp_path / "marks"
    marks.mkdir()
    run(source, tmp_path / "killed", partial(killed_once, marks), work=work)
    assert sorted(path.name for path in marks.iterdir()) == ["1", "3"], "both workers were killed"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_unreadable_samples_are_counted_up_to_a_limit(source: Path, tmp_path: Path):
    write_shards(read_shards(source), tmp_path / "torn", ShardConfig(samples_per_shard=12))
    index = ShardIndex.load(tmp_path / "torn")
    for number in (0, 2):
        path = tmp_path / "torn" / index.shards[number].file
        data = bytearray(path.read_bytes())
        data[index.rows(number).offsets[5] + 600] ^= 1
        path.write_bytes(bytes(data))
    report = run(tmp_path / "torn", tmp_path / "out")
    assert report.dropped["checksum"] == 2
    with pytest.raises(ValueError, match=r"(?s)2 of 60 samples.*max_bad_samples=1 allows.*omr data validate"):
        run(tmp_path / "torn", tmp_path / "out1", max_bad_samples=1)
    assert run(tmp_path / "torn", tmp_path / "share", max_bad_samples=0.04).dropped["checksum"] == 2
    with pytest.raises(ValueError, match=r"max_bad_samples=0\.03 allows"):
        run(tmp_path / "torn", tmp_path / "share1", max_bad_samples=0.03)


def test_folders_of_other_content_or_settings_are_refused(source: Path, tmp_path: Path):
    before = files(source)
    with pytest.raises(ValueError, match="not empty and has no stage.json"):
        run(source, source)
    assert files(source) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out/stage.json.partial").touch()  # left by a kill
    run(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.partial"))
    with pytest.raises(ValueError, match="made with other settings: kind was 'sum', is 'other'"):
        run(source, tmp_path / "out", kind="other")
    assert run(source, tmp_path / "out", kind="other", rewrite=True).kept
    (tmp_path / "out/stage.json").write_text("{torn")
    with pytest.raises(ValueError, match="stage.json is not valid JSON"):
        run(source, tmp_path / "out")
