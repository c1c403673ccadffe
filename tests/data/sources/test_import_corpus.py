"""Imports by several workers, killed and repeated, end with the bytes of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.encode.image_header import image_size
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex, rows_path
from data_pipeline.sources.config import ImportConfig
from data_pipeline.sources.import_corpus import import_corpus
from launch import cli
from tests.data.shards.test_writer import contents


def write_sources(folder: Path, num_files: int, rows: int) -> Path:
    folder.mkdir()
    for file in range(num_files):
        lines = [
            json.dumps(
                {"id": f"{file}-{n}", "question": f"What is {n} + {file}?" * 20, "answer": str(n + file)}
            )
            for n in range(rows)
        ]
        lines[file] = '{"question": "broken"'
        (folder / f"train-{file:05d}.jsonl").write_text("\n".join(lines))
    return folder


def start_import(source: Path, out: Path, *words: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "data",
        "import",
        "questions",
        str(source),
        str(out),
        *words,
    ]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("source") / "rows", 6, 4_000)


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, bytes]:
    """What one worker writes that nobody disturbs."""
    done = start_import(source, source.parent / "whole")
    assert done.communicate(timeout=120)[0].startswith("24000 rows: 23994 samples in ")
    return contents(source.parent / "whole")


def wait_for_a_finished_part(out: Path) -> Path:
    """The first shard of a part that is done while others are not."""
    for _ in range(6_000):
        time.sleep(0.01)
        if done := sorted(out.glob("part-*.json")):
            assert not (out / "index.json").exists(), "the import is still in the middle"
            return out / f"shard-{done[0].stem.removeprefix('part-')}-0000.tar"
    raise AssertionError("no part was finished in a minute")


def test_an_import_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, source: Path, whole: dict[str, bytes]
):
    killed = start_import(source, tmp_path / "out", "--workers", "2")
    first = wait_for_a_finished_part(tmp_path / "out")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    stamp = first.stat().st_mtime_ns
    again = start_import(source, tmp_path / "out", "--workers", "3")
    said = again.communicate(timeout=120)[0]
    assert said.startswith("24000 rows: 23994 samples") and "6 dropped" in said, "tallies add up"
    assert "6 unreadable, the first: train-00000.jsonl, row 0: unreadable: line 1 of" in said
    assert first.stat().st_mtime_ns == stamp, "it went on behind the finished part"
    assert contents(tmp_path / "out") == whole
    index = ShardIndex.load(tmp_path / "out")
    assert len(index.shards) == 6 and all(rows_path(index.folder / s.file).exists() for s in index.shards)
    sample = next(iter(read_shards(tmp_path / "out")))
    assert sample.metadata["file"] == "train-00000.jsonl" and sample.metadata["row"] == 1


def test_a_worker_that_is_killed_is_replaced_and_the_bytes_are_the_same(
    tmp_path: Path, source: Path, whole: dict[str, bytes]
):
    running = start_import(source, tmp_path / "out", "--workers", "2")
    wait_for_a_finished_part(tmp_path / "out")
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    said = running.communicate(timeout=120)[0]
    assert said.startswith("24000 rows: 23994 samples") and running.returncode == 0
    assert contents(tmp_path / "out") == whole


def test_another_import_does_not_go_on_behind_the_parts_of_one(tmp_path: Path):
    source = write_sources(tmp_path / "source", 3, 30)
    out = str(tmp_path / "out")
    config = ImportConfig(path=str(source), out=out, max_bad_samples=1)
    with pytest.raises(ValueError, match="3 of 90 rows are bad"):
        import_corpus("questions", config)
    with pytest.raises(ValueError, match="holds shards of another import"):
        import_corpus("questions", replace(config, system_prompt=False))
    (source / "train-00001.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds shards of another import"):
        import_corpus("questions", replace(config, max_bad_samples=9))


def test_an_import_without_any_sample_can_be_mended(tmp_path: Path):
    source = write_sources(tmp_path / "source", 2, 30)
    config = ImportConfig(path=str(source), out=str(tmp_path / "out"), max_bad_samples=100)
    with pytest.raises(ValueError, match="no row of"):
        import_corpus("llava_cot", config)
    tally = import_corpus("questions", config)
    assert tally and (tally.rows, tally.samples, tally.num_dropped) == (60, 58, 2)


def test_a_limit_counts_over_all_files(tmp_path: Path):
    source = write_sources(tmp_path / "source", 4, 10)
    config = ImportConfig(path=str(source), out=str(tmp_path / "out"), limit=15, max_bad_samples=9, workers=3)
    tally = import_corpus("questions", config)
    assert tally and tally.samples == 15 and tally.rows == 17
    samples = list(read_shards(tmp_path / "out"))
    assert [sample.metadata["file"] for sample in samples] == ["train-00000.jsonl"] * 9 + [
        "train-00001.jsonl"
    ] * 6


def test_a_pixel_cap_is_kept_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number, side in enumerate((100, 300, 500)):
        Image.new("RGB", (side, side), "red").save(tmp_path / f"{number}.png")
    rows = [{"question": f"What is {n}?", "answer": n, "image": f"{n}.png"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["data", "import", "questions", str(tmp_path / "rows.jsonl"), str(tmp_path / "out")]
    assert cli.main([*words, "--max_pixels", "50000"]) == 0
    assert "2 images were larger than max_pixels=50000 and are scaled down" in capsys.readouterr().out
    images = [image_size(sample.images[0]) for sample in read_shards(tmp_path / "out")]
    assert images == [(100, 100), (196, 196), (196, 196)]
