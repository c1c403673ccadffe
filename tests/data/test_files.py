"""Files are whole or absent, folders belong to one configuration; a real SIGKILL proves it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.files import (
    atomic_folder,
    atomic_writer,
    claim_folder,
    parse_json,
    read_json,
    remove_leftovers,
    without_nan,
    write_json,
)

ROOT = Path(__file__).parents[2]
WANTED = {"input": "abc", "filters": {"min_words": 3}, "names": ("a", "b")}


def test_file_appears_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "new" / "file"
    with atomic_writer(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert [left.name for left in path.parent.iterdir()] == ["file"]


def test_error_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_writer(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_writer_leaves_the_old_file_and_the_next_one_writes(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom data_pipeline.files import atomic_writer\n"
        "with atomic_writer(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=60)
    assert killed.returncode == -9
    assert path.read_bytes() == b"old" and (tmp_path / "file.partial").exists()
    with atomic_writer(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and not (tmp_path / "file.partial").exists()


def test_folder_takes_the_place_of_an_older_one(tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "stale").touch()
    (tmp_path / ".out.partial" / "of a kill").mkdir(parents=True)
    with atomic_folder(folder) as partial:
        (partial / "file").touch()
        assert [left.name for left in folder.iterdir()] == ["stale"]
    assert [left.name for left in folder.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == [folder]


def test_error_keeps_the_old_folder_and_leaves_nothing_behind(tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(RuntimeError), atomic_folder(folder):
        raise RuntimeError
    assert [left.name for left in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_leftovers_of_folders_are_removed_and_nothing_else(tmp_path: Path):
    left = [
        ".step-1.partial",
        ".step-2.old",
        ".step-x.partial",
        ".hf.old",
        "step-1.partial",
        "step-1",
        ".step-1",
    ]
    for name in left:
        (tmp_path / name / "hf").mkdir(parents=True)
    remove_leftovers(tmp_path, "step-[0-9]")
    remove_leftovers(tmp_path / "none", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left[2:])


@pytest.mark.parametrize("aim", ["folder", "nowhere"])
def test_links_and_files_in_the_place_of_a_folder_are_replaced(tmp_path: Path, aim: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / aim)
    (tmp_path / "file").touch()
    (tmp_path / ".hf.old").symlink_to(tmp_path / "folder")
    for name in ("link", "file"):
        with atomic_folder(tmp_path / name) as partial:
            (partial / "new").touch()
        assert not (tmp_path / name).is_symlink() and (tmp_path / name / "new").exists()
    remove_leftovers(tmp_path, "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kept"]


def test_shared_writers_do_not_touch_each_other(tmp_path: Path):
    path = tmp_path / "file"
    other = tmp_path / "file.1.partial"
    other.write_bytes(b"of another process")
    with atomic_writer(path, shared=True) as file:
        file.write(b"mine")
    assert path.read_bytes() == b"mine" and other.exists()


def test_json_round_trip_and_a_broken_file(tmp_path: Path):
    path = tmp_path / "x.json"
    write_json(path, {"π": [1, 2.5]})
    assert read_json(path) == {"π": [1, 2.5]}
    path.write_bytes(b"{torn")
    with pytest.raises(ValueError, match="x.json is not valid JSON .* delete it and run again"):
        read_json(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_of_ours_never_holds_nan(tmp_path: Path, value: float):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": [1, value]})
    assert list(tmp_path.iterdir()) == []
    assert without_nan({"a": [1, value], "b": (value, "x")}) == {"a": [1, None], "b": [None, "x"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "holds NaN, which JSON does not have"),
        ("[Infinity]", "holds Infinity"),
        ("[-Infinity]", "holds -Infinity"),
        ("[1e999]", "holds 1e999, which is too large"),
        ('[{"a": 1, "b": 2, "a": 1}]', "has the name 'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1', "Expecting"),
        (b'{"a": "\xff"}', "utf-8"),
    ],
)
def test_json_of_others_is_refused_with_its_fault(text: str | bytes, message: str):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_of_others_is_read_like_any_other():
    text = '{"π": [1, -2.5e3, null, true, "NaN", {"a": {}, "b": []}], "big": 123456789012345678901234567890}'
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_claim_is_repeatable(tmp_path: Path):
    for _ in range(2):
        claim_folder(tmp_path / "out", "made.json", WANTED)
    assert read_json(tmp_path / "out" / "made.json")["names"] == ["a", "b"]


def test_claim_names_what_changed(tmp_path: Path):
    claim_folder(tmp_path / "out", "made.json", WANTED)
    (tmp_path / "out" / "result").touch()
    with pytest.raises(ValueError, match="input was 'abc', is 'xyz'"):
        claim_folder(tmp_path / "out", "made.json", WANTED | {"input": "xyz"})
    claim_folder(tmp_path / "out", "made.json", WANTED | {"input": "xyz"}, replace=True)
    assert [left.name for left in (tmp_path / "out").iterdir()] == ["made.json"]
    assert [left.name for left in tmp_path.iterdir()] == ["out"]


def test_claim_replaces_only_where_the_named_settings_alone_differ(tmp_path: Path):
    out = tmp_path / "out"
    claim_folder(out, "made.json", WANTED)
    (out / "result").touch()
    with pytest.raises(ValueError, match="limit was None, is 3; set them back"):
        claim_folder(out, "made.json", WANTED | {"input": "xyz", "limit": 3}, replace=("input", "limit"))
    assert (out / "result").exists()
    claim_folder(out, "made.json", WANTED | {"input": "xyz"}, replace=("input",))
    assert [left.name for left in out.iterdir()] == ["made.json"]
    assert read_json(out / "made.json")["input"] == "xyz"


def test_claim_adopts_files_without_a_manifest_on_request(tmp_path: Path):
    (tmp_path / "result").touch()
    claim_folder(tmp_path, "made.json", WANTED, adopt=True)
    assert (tmp_path / "result").exists() and read_json(tmp_path / "made.json")["input"] == "abc"
    with pytest.raises(ValueError, match="input was 'abc', is 'xyz'"):
        claim_folder(tmp_path, "made.json", WANTED | {"input": "xyz"}, adopt=True)


def test_claim_takes_a_missing_setting_for_none_and_keeps_the_files(tmp_path: Path):
    claim_folder(tmp_path, "made.json", WANTED)
    (tmp_path / "result").touch()
    claim_folder(tmp_path, "made.json", WANTED | {"limit": None})
    assert (tmp_path / "result").exists() and read_json(tmp_path / "made.json")["limit"] is None


def test_claim_refuses_files_of_others_but_not_leftovers_of_a_kill(tmp_path: Path):
    (tmp_path / "made.json.partial").touch()
    claim_folder(tmp_path, "made.json", WANTED)
    (tmp_path / "made.json").rename(tmp_path / "thesis.tex")
    with pytest.raises(ValueError, match="is not empty and has no made.json"):
        claim_folder(tmp_path, "made.json", WANTED, replace=True)
    assert (tmp_path / "thesis.tex").exists()
