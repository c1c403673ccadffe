"""Files that grow, are written anew, are cut, vanish and come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.watch.follow import LineFollower


def poll(follower: LineFollower) -> tuple[bool, list[bytes]]:
    begins, lines = follower.poll()
    return begins, [line.rstrip() for line in lines]


def test_only_new_lines_are_read_and_half_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    follower = LineFollower(path)
    assert poll(follower) == (False, []), "it is not there yet"
    path.write_bytes(b"one\ntw")
    assert poll(follower) == (False, [b"one"])
    assert poll(follower) == (False, [])
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert poll(follower) == (False, [b"two", b"three"])


@pytest.mark.parametrize("text", [b"one\n", b"other\nlines\n", b"one\nTWO\nthree\nfour\n", b""])
def test_file_that_is_another_one_begins_again(tmp_path: Path, text: bytes) -> None:
    """As of a resumed run, which writes the lines before its checkpoint anew; also in the same inode."""
    path = tmp_path / "lines"
    for replace in (True, False):
        path.write_bytes(b"one\ntwo\nthree\n")
        follower = LineFollower(path)
        assert len(poll(follower)[1]) == 3
        if replace:
            path.with_name("new").write_bytes(text)
            path.with_name("new").replace(path)
        else:
            path.write_bytes(text)
        assert poll(follower) == (True, text.splitlines())
        assert poll(follower) == (False, [])


def test_deleted_folder_begins_again_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lines"
    path.parent.mkdir()
    path.write_bytes(b"one\n")
    follower = LineFollower(path)
    poll(follower)
    path.unlink()
    path.parent.rmdir()
    assert poll(follower) == (True, [])
    assert poll(follower) == (False, [])
    path.parent.mkdir()
    path.write_bytes(b"one\n")
    assert poll(follower) == (False, [b"one"])


def test_window_reads_whole_lines_at_the_end_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"".join(b"line %04d\n" % i for i in range(1000)))
    follower = LineFollower(path, window=35)
    assert poll(follower) == (False, [b"line 0997", b"line 0998", b"line 0999"])
    with path.open("ab") as file:
        file.write(b"line 1000\nlin")
    assert poll(follower) == (False, [b"line 1000"])
    with path.open("ab") as file:
        file.write(b"e 1001\n" + b"x" * 50 + b"\nline 1003\n")
    assert poll(follower) == (False, [b"line 1003"]), "more than the window came since"


def test_line_longer_than_the_window_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 100)
    follower = LineFollower(path, window=35)
    assert poll(follower) == (False, [])
    with path.open("ab") as file:
        file.write(b"\nshort\n")
    assert poll(follower) == (False, [b"short"])
