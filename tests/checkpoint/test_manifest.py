"""The manifest names every file that is damaged, missing or of another checkpoint, in one line, and ignores others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from data_pipeline.files import parse_json, to_json, write_json
from megatron_omr.checkpoint.manifest import (
    FileSum,
    Manifest,
    check_files,
    read_manifest,
    sum_file,
    write_manifest,
)

SIZES = {"__0_0.distcp": 5_000_000, "__1_0.distcp": 90_000, ".metadata": 700, "hf/config.json": 41}
FIELDS = {"step": 7, "world_size": 2, "state": {"lr": 1e-5, "ids": ["ä"], "epochs": {2: 1, 10: 0}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000007"
    return fill(folder, seed=0)


def fill(folder: Path, *, seed: int) -> Path:
    (folder / "hf").mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        (folder / name).write_bytes(
            bytes((seed + number + i) % 251 for i in range(1000)) * (size // 1000 + 1)
        )
        os.truncate(folder / name, size)
    write_manifest(folder, FIELDS, {name: sum_file(folder / name) for name in SIZES})
    return folder


def check(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return manifest


def fault(folder: Path) -> str:
    with pytest.raises(ValueError, match="take another step-") as error:
        check(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_was_written_is_read(folder: Path):
    manifest = check(folder)
    assert (manifest.step, manifest.world_size) == (7, 2)
    assert manifest.fields["state"] == {"lr": 1e-5, "ids": ["ä"], "epochs": {"2": 1, "10": 0}}
    assert {name: file.num_bytes for name, file in manifest.files.items()} == SIZES


def test_sum_is_the_xxh3_of_all_bytes(folder: Path):
    for name in SIZES:
        data = (folder / name).read_bytes()
        assert sum_file(folder / name) == FileSum(len(data), xxhash.xxh3_64_hexdigest(data))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_found(folder: Path, name: str, place: float):
    data = bytearray((folder / name).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    (folder / name).write_bytes(data)
    assert f"{folder / name} is damaged: its sum is " in fault(folder)


@pytest.mark.parametrize("name", SIZES)
def test_cut_emptied_removed_or_replaced_files_are_found(folder: Path, name: str):
    path, size = folder / name, SIZES[name]
    os.truncate(path, size // 2)
    assert f"{path} is damaged: it has {size // 2} bytes, written were {size};" in fault(folder)
    os.truncate(path, 0)
    assert f"{path} is damaged: it has 0 bytes, written were {size};" in fault(folder)
    path.unlink()
    assert f"{path} cannot be read (No such file or directory)" in fault(folder)
    path.mkdir()
    assert f"{path} is damaged: it is no file any more" in fault(folder)
    path.rmdir()
    os.mkfifo(path)
    assert f"{path} is damaged: it is no file any more" in fault(folder)


@pytest.mark.parametrize("name", [*SIZES, "state.json"])
def test_file_of_another_checkpoint_is_found(folder: Path, tmp_path: Path, name: str):
    other = fill(tmp_path / "step-00000008", seed=1)
    (other / name).replace(folder / name)
    assert f"{folder}/" in fault(folder)


def test_every_flipped_bit_of_the_manifest_is_found(folder: Path):
    path = folder / "state.json"
    sound = path.read_bytes()
    for place in range(len(sound)):
        data = bytearray(sound)
        data[place] ^= 1
        path.write_bytes(data)
        if not equal_json(sound, bytes(data)):
            assert str(path) in fault(folder)
    path.write_bytes(sound)
    check(folder)


def equal_json(one: bytes, other: bytes) -> bool:
    """Returns true if both say the same: a space became another white space."""
    try:
        return parse_json(one) == parse_json(other)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "is damaged ("),
        (lambda path: os.truncate(path, 0), "is damaged ("),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is damaged ("),
        (lambda path: path.write_bytes(b"[" * 100_000), "nested too deeply"),
        (lambda path: path.write_bytes(b"[]"), "lists no files"),
        (lambda path: path.unlink(), "has no state.json that can be read (No such file or directory)"),
        (lambda path: (path.unlink(), path.mkdir()), "has no state.json that can be read (Is a directory)"),
    ],
)
def test_spoilt_manifest_is_found(folder: Path, spoil: Callable[[Path], object], words: str):
    spoil(folder / "state.json")
    assert words in fault(folder)


def test_state_of_an_earlier_version_is_refused(folder: Path):
    write_json(folder / "state.json", {"step": 7, "world_size": 2, "device": "cpu", "state": {}})
    assert "lists no files: an earlier version wrote it" in fault(folder)


@pytest.mark.parametrize(
    "files",
    [
        {"/etc/passwd": [1, "0"]},
        {"hf/../../secret": [1, "0"]},
        {"a\0b": [1, "0"]},
        {"a": ["1", "0"]},
        {"a": [1, 0]},
        {"a": [1]},
        {"a": None},
        [["a", 1, "0"]],
        None,
    ],
)
def test_manifest_made_by_hand_reads_nothing_outside(folder: Path, files: Any):
    content = {"step": 7, "world_size": 2, "files": files}
    text = to_json(content, sort_keys=True, compact=True)
    write_json(folder / "state.json", content | {"sum": xxhash.xxh3_64_hexdigest(text.encode())})
    assert "state.json is not of a checkpoint" in fault(folder)


def test_files_that_are_not_listed_are_ignored(folder: Path):
    for name in (".nfs0000000042", "state.json~", ".__0_0.distcp.swp", "hf/config.json.orig", "__2_0.distcp"):
        (folder / name).write_bytes(b"stray")
    (folder / "notes").mkdir()
    check(folder)


@pytest.mark.parametrize("world_size", [1, 2, 9])
def test_each_file_is_checked_by_one_rank(folder: Path, world_size: int):
    manifest, finders = read_manifest(folder), {}
    for name in SIZES:
        hidden = (folder / name).rename(folder / "hidden")
        finders[name] = [rank for rank in range(world_size) if fails(folder, manifest, (rank, world_size))]
        hidden.rename(folder / name)
    assert all(len(ranks) == 1 for ranks in finders.values())
    assert len({rank for ranks in finders.values() for rank in ranks}) == min(world_size, len(SIZES))
    alone = "__0_0.distcp"  # it is larger than the others together
    assert world_size == 1 or [name for name in SIZES if finders[name] == finders[alone]] == [alone]


def fails(folder: Path, manifest: Manifest, part: tuple[int, int]) -> bool:
    try:
        check_files(folder, manifest, part=part)
    except ValueError:
        return True
    return False


def test_torch_is_not_imported():
    code = "import sys, megatron_omr.checkpoint.manifest\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
