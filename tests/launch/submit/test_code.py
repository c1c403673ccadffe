"""The code of a run: commit, tree and diff give back the checkout as it was, and nothing in it changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch.submit.code import find_code


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    return subprocess.check_output(["git", "-C", str(folder), *who, *words], text=True)


def test_tree_and_diff_hold_changed_new_and_binary_files(tmp_path: Path):
    repo = tmp_path / "repo"
    repo.mkdir()
    git(repo, "init", "-q")
    (repo / ".gitignore").write_text("runs/\n")
    (repo / "kept.py").write_text("old\n")
    (repo / "gone.py").write_text("x\n")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "first")
    clean = find_code(repo)
    assert clean.diff == b"" and clean.describe() == f"revision {clean.revision[:12]}"
    (repo / "kept.py").write_text("new\n")
    (repo / "gone.py").unlink()
    (repo / "new.bin").write_bytes(bytes(range(256)))
    (repo / "runs").mkdir()
    (repo / "runs" / "ignored").write_text("large\n")
    before = git(repo, "status", "--porcelain")
    code = find_code(repo)
    assert git(repo, "status", "--porcelain") == before, "files and index are as they were"
    assert code.revision == clean.revision and code.describe().endswith("and 3 changed files")

    packed = tmp_path / "packed"
    packed.mkdir()
    archive = subprocess.run(["git", "-C", str(repo), "archive", code.tree], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(packed)], input=archive.stdout, check=True)
    assert sorted(path.name for path in packed.iterdir()) == [".gitignore", "kept.py", "new.bin"]
    assert (packed / "kept.py").read_text() == "new\n"

    git(tmp_path, "clone", "-q", str(repo), "again")
    again = tmp_path / "again"
    git(again, "checkout", "-q", code.revision)
    subprocess.run(["git", "-C", str(again), "apply"], input=code.diff, check=True)
    assert (again / "new.bin").read_bytes() == bytes(range(256)) and not (again / "gone.py").exists()


def test_folder_without_git_is_said_to_be_one(tmp_path: Path):
    code = find_code(tmp_path)
    assert not code.revision and not code.tree
    assert code.describe().endswith(
        "is no git checkout: its code is not packed, and runs as it is where the job runs"
    )
    (tmp_path / "inside").mkdir()
    git(tmp_path, "init", "-q")
    assert not find_code(tmp_path / "inside").revision, (
        "a checkout of something else around it does not count"
    )


def test_data_in_the_checkout_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    (tmp_path / "weights.bin").write_bytes(b"0" * 3_000_000)
    assert find_code(tmp_path).diff
    monkeypatch.setattr("launch.submit.code.MAX_NEW_BYTES", 2_000_000)
    with pytest.raises(
        ValueError, match=r"has 3 MB of new files.* above all weights.bin; put .* into .gitignore"
    ):
        find_code(tmp_path)
