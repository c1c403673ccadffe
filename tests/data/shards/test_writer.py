"""Parts written by several processes, killed and repeated, give the same bytes in bounded memory."""

from __future__ import annotations

import fcntl
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import WorkConfig
from data_pipeline.encode.config import ImageConfig
from data_pipeline.parts import run_parts
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import finish_shards, write_part, write_shards
from data_pipeline.types import Message, Sample
from tests.helpers.processes import wait_until


def samples_of(part: int) -> Iterator[Sample]:
    for number in range(5 + 3 * part):
        file = io.BytesIO()
        Image.new("RGB", (40 + number, 60), (part, number, 9)).save(file, "PNG")
        yield pictured(100 * part + number, file.getvalue())


def write(out: Path, part: int) -> int:
    return len(write_part(samples_of(part), out, part, ShardConfig(samples_per_shard=4)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def photograph(number: int, width: int = 320, height: int = 240) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    return file.getvalue()


def pictured(number: int, *images: bytes) -> Sample:
    turns = (
        Message(role="user", content="<image>" * len(images) + "What?"),
        Message(role="assistant", content="1"),
    )
    return Sample(id=f"p/{number}", source="p", messages=turns, images=images, answer="1")


# ---- parts


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path):
    for workers in (1, 2, 3):
        out = tmp_path / str(workers)
        assert run_parts(partial(write, out), range(4), work=WorkConfig(workers=workers)) == [2, 2, 3, 4]
        index = finish_shards(out, 4)
        assert len(index) == 5 + 8 + 11 + 14
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")
    assert [sample.id for sample in read_shards(tmp_path / "3")] == [
        sample.id for part in range(4) for sample in samples_of(part)
    ]


def test_names_and_order_are_those_of_the_parts(tmp_path: Path):
    for part in (2, 0, 1):
        write(tmp_path, part)
    index = finish_shards(tmp_path, 3)
    assert [shard.file for shard in index.shards] == [
        *("shard-000000-0000.tar", "shard-000000-0001.tar", "shard-000001-0000.tar", "shard-000001-0001.tar"),
        *("shard-000002-0000.tar", "shard-000002-0001.tar", "shard-000002-0002.tar"),
    ]
    assert not list(tmp_path.glob("part-*")), "the index replaces the records"


def test_a_finished_part_is_returned_without_reading_samples(tmp_path: Path):
    first = write_part(samples_of(0), tmp_path, 0)
    stamp = (tmp_path / first[0].file).stat().st_mtime_ns
    unread = iter(samples_of(0))
    assert write_part(unread, tmp_path, 0) == first
    assert next(unread) == next(iter(samples_of(0)))
    with (tmp_path / "part-000000.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert write_part(unread, tmp_path, 0) == first, "even while another process holds the lock"
    assert (tmp_path / first[0].file).stat().st_mtime_ns == stamp


def test_an_unfinished_part_is_removed_and_written_again(tmp_path: Path):
    def dying() -> Iterator[Sample]:
        yield from samples_of(2)  # other samples, in more shards
        raise KeyboardInterrupt

    write(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        write_part(dying(), tmp_path, 0, ShardConfig(samples_per_shard=2))
    assert (tmp_path / "shard-000000-0004.tar").exists()
    write(tmp_path, 0)
    finish_shards(tmp_path, 2)
    write(tmp_path / "fresh", 0)
    write(tmp_path / "fresh", 1)
    finish_shards(tmp_path / "fresh", 2)
    fresh = contents(tmp_path / "fresh")
    (tmp_path / "fresh").rename(tmp_path.parent / "fresh")
    assert contents(tmp_path) == fresh


def test_missing_parts_are_named(tmp_path: Path):
    write(tmp_path, 0)
    write(tmp_path, 3)
    with pytest.raises(
        ValueError, match="2 of the 4 parts of .* are not written, the first is part 1; repeat"
    ):
        finish_shards(tmp_path, 4)
    assert not (tmp_path / "index.json").exists()


def test_finishing_twice_changes_nothing_but_removes_leftover_records(tmp_path: Path):
    write(tmp_path, 0)
    record = (tmp_path / "part-000000.json").read_bytes()
    finish_shards(tmp_path, 1)
    before = contents(tmp_path)
    (tmp_path / "part-000000.json").write_bytes(record)  # killed between the index and the removal
    assert finish_shards(tmp_path, 1).digest == ShardIndex.load(tmp_path).digest
    assert contents(tmp_path) == before


def test_tars_of_other_parts_stop_the_index(tmp_path: Path):
    write(tmp_path, 0)
    write(tmp_path, 1)
    with pytest.raises(ValueError, match=r"'shard-000001-0000.tar', not one of its shards"):
        finish_shards(tmp_path, 1)


def _write_slowly(out: Path, started: str) -> None:
    def slow() -> Iterator[Sample]:
        yield from samples_of(0)
        Path(started).touch()
        threading.Event().wait()  # until it is killed

    write_part(slow(), out, 0)


def test_a_second_writer_of_a_part_is_refused_and_a_dead_one_does_not_block(tmp_path: Path):
    started = tmp_path / "started"
    other = multiprocessing.get_context("spawn").Process(
        target=_write_slowly, args=(tmp_path / "out", str(started))
    )
    other.start()
    wait_until(started.exists)
    with pytest.raises(ValueError, match=r"another process is writing part-000000 of .*; wait for it"):
        write(tmp_path / "out", 0)
    assert write(tmp_path / "out", 1) == 2, "other parts are not locked"
    assert other.pid
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert write(tmp_path / "out", 0) == 2
    assert len(finish_shards(tmp_path / "out", 2)) == 13


def test_the_same_samples_give_the_same_bytes_and_others_another_digest(tmp_path: Path):
    samples = list(samples_of(6))
    one, again = (
        write_shards(iter(samples), tmp_path / name, ShardConfig(samples_per_shard=10)) for name in "ab"
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and one.digest == again.digest
    assert write_shards(samples[1:], tmp_path / "other").digest != one.digest


def test_tokens_are_estimated_from_text_and_image_headers(tmp_path: Path):
    text = "<image><image>" + "What?" + "1"
    index = write_shards([pictured(1, photograph(1), b"what?"), pictured(2)], tmp_path)
    assert index.tokens(0) == len(text) // 4 + 320 * 240 // 784, "bytes that are no image count nothing"
    assert index.tokens(1) == len("What?1") // 4
    assert index.rows(0).images == (((320, 240), (0, 0)), ())


def test_a_killed_write_leaves_no_index_and_can_be_repeated(tmp_path: Path):
    def dying() -> Iterator[Sample]:
        yield from list(samples_of(6))[:15]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(dying(), tmp_path, ShardConfig(samples_per_shard=10))
    with pytest.raises(ValueError, match=r"index\.json does not exist"):
        ShardIndex.load(tmp_path)
    write_shards(list(samples_of(6)), tmp_path, ShardConfig(samples_per_shard=10))
    assert list(read_shards(tmp_path)) == list(samples_of(6))


def test_leftovers_of_a_killed_write_do_not_join_the_next(tmp_path: Path):
    def dying() -> Iterator[Sample]:
        yield from list(samples_of(6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(dying(), tmp_path, ShardConfig(samples_per_shard=5))
    write_shards(list(samples_of(6))[:7], tmp_path, ShardConfig(samples_per_shard=5))
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [
        "shard-000000-0000.tar",
        "shard-000000-0001.tar",
    ]
    assert not list(tmp_path.glob("*.partial"))


def test_finished_shards_are_never_overwritten(tmp_path: Path):
    write_shards(samples_of(0), tmp_path)
    with pytest.raises(ValueError, match="already holds shards"):
        write_shards(samples_of(1), tmp_path)


def test_tar_files_of_others_are_not_touched(tmp_path: Path):
    (tmp_path / "shard-000000-0000.tar").write_bytes(b"precious")
    with pytest.raises(ValueError, match="not one of its shards"):
        write_shards(list(samples_of(6)), tmp_path)
    assert (tmp_path / "shard-000000-0000.tar").read_bytes() == b"precious"


# ---- bytes


def test_shards_are_cut_at_the_size_or_the_count_whichever_comes_first(tmp_path: Path):
    image = photograph(0)
    samples = [pictured(number, image) for number in range(40)]
    one = 512 + 512 + 512 + len(image) + -len(image) % 512
    by_size = write_shards(samples, tmp_path / "size", ShardConfig(target_bytes=8 * one - 1))
    assert [shard.count for shard in by_size.shards] == [8] * 5
    assert all(shard.bytes < 8 * one + tarfile.RECORDSIZE + 1_024 for shard in by_size.shards)
    by_count = write_shards(
        samples, tmp_path / "count", ShardConfig(target_bytes=8 * one - 1, samples_per_shard=7)
    )
    assert [shard.count for shard in by_count.shards] == [7] * 5 + [5]
    alone = write_shards(samples[:3], tmp_path / "alone", ShardConfig(target_bytes=1))
    assert [shard.count for shard in alone.shards] == [1, 1, 1], "a sample is never cut"


def test_tarfile_would_write_the_same_bytes(tmp_path: Path):
    """Headers, padding and end equal those of Python's own writer."""
    index = write_shards([pictured(1, photograph(1)), *samples_of(0)], tmp_path)
    path = tmp_path / index.shards[0].file
    again = io.BytesIO()
    with (
        tarfile.open(path) as tar,
        tarfile.open(fileobj=again, mode="w", format=tarfile.USTAR_FORMAT) as copy,
    ):
        for info in tar:
            copy.addfile(info, tar.extractfile(info))
    assert again.getvalue() == path.read_bytes()


def test_the_index_has_place_size_and_checksum_of_each_sample(tmp_path: Path):
    index = write_shards(
        [*samples_of(2), pictured(1, photograph(1))], tmp_path, ShardConfig(samples_per_shard=5)
    )
    for number, shard in enumerate(index.shards):
        rows, data = index.rows(number), (tmp_path / shard.file).read_bytes()
        with tarfile.open(tmp_path / shard.file) as tar:
            starts = [info.offset for info in tar if info.name.endswith(".json")]
            end = tar.offset
        assert list(rows.offsets) == starts
        assert [o + s for o, s in zip(rows.offsets, rows.sizes, strict=True)] == [*starts[1:], end]
        stretches = [data[o : o + s] for o, s in zip(rows.offsets, rows.sizes, strict=True)]
        assert list(rows.crc32) == [zlib.crc32(stretch) for stretch in stretches]


def test_plain_webdataset_reads_all_parts_in_one_stream(tmp_path: Path):
    """Keys differ over the whole folder: WebDataset joins neighbours that share one."""
    import webdataset

    for part in range(3):
        write(tmp_path, part)
    finish_shards(tmp_path, 3)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    records = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len({record["__key__"] for record in records}) == len(records) == 24
    assert [record["json"]["id"] for record in records] == [s.id for p in range(3) for s in samples_of(p)]
    assert all(record["0.png"].mode == "RGB" for record in records)


def test_a_folder_of_an_older_layout_is_refused_with_the_fix(tmp_path: Path):
    write_shards(samples_of(0), tmp_path)
    text = (tmp_path / "index.json").read_text()
    (tmp_path / "index.json").write_text(text.replace('"version":2', '"version":1'))
    with pytest.raises(ValueError, match="version 1, not 2.*write the shards again"):
        ShardIndex.load(tmp_path)


# ---- the pixel cap


def test_images_change_only_above_a_pixel_cap(tmp_path: Path):
    from data_pipeline.encode.images import (
        load_image,  # imports torch, which workers of other tests do not need
    )

    large, small, bad = photograph(1, 800, 600), photograph(2, 100, 80), b"\x89PNG no image"
    png = io.BytesIO()
    Image.new("RGBA", (700, 500), (200, 30, 30, 128)).save(png, "PNG")
    sample = pictured(0, large, small, png.getvalue(), bad)
    assert next(iter(read_shards(write_shards([sample], tmp_path / "all").folder))) == sample
    index = write_shards([sample], tmp_path / "capped", ShardConfig(max_pixels=200_000))
    images = next(iter(read_shards(index.folder))).images
    assert images[1] == small and images[3] == bad, "below the cap, or no image"
    assert index.shards[0].scaled == 2
    for scaled, original in ((images[0], large), (images[2], png.getvalue())):
        with Image.open(io.BytesIO(scaled)) as file, Image.open(io.BytesIO(original)) as before:
            assert file.format == before.format and file.width * file.height <= 200_000
            assert abs(file.width / file.height - before.width / before.height) < 0.1
        wanted = load_image(original, ImageConfig(max_pixels=200_000))
        seen = load_image(scaled, ImageConfig())
        assert seen.size == wanted.size, "the loader does not resize again"
        error = np.abs(np.asarray(seen, dtype=int) - np.asarray(wanted, dtype=int)).mean()
        assert error < 6, "noise is the worst case for JPEG"
    again = write_shards([sample], tmp_path / "again", ShardConfig(max_pixels=200_000))
    assert again.digest == index.digest


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"target_bytes": 0}, "target_bytes=0"), ({"max_pixels": 100}, "max_pixels=100 must be 0 for no cap")],
)
def test_wrong_limits_are_named(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ShardConfig(**wrong)


# ---- memory

MEASURE = """
import resource, sys
from pathlib import Path
from tests.helpers.noise import noise_samples
from data_pipeline.shards.writer import write_shards
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_shards(noise_samples(4), Path(sys.argv[1]) / "warm")
before = peak()
index = write_shards(noise_samples(200), Path(sys.argv[1]) / "large")
assert len(index.shards) == 1 and index.shards[0].bytes > 200e6
print((peak() - before) * 1024)
"""


def test_memory_does_not_grow_with_the_shard(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 0.3 * 200e6, f"{int(done.stdout) / 1e6:.0f} MB more for one shard of 210 MB"
