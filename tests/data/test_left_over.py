"""Processes that belong to a folder, by what /proc says of them."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.left_over import _belongs


def test_descriptor_that_was_closed_meanwhile_hides_no_other(tmp_path: Path) -> None:
    """In a folder like /proc/PID: a descriptor that is no link stands for one that is gone when it is read."""
    process, folder = tmp_path / "123", tmp_path / "omr_1"
    for name in ("fd", "fdinfo"):
        (process / name).mkdir(parents=True)
    (process / "cmdline").write_bytes(b"python\0")
    (process / "environ").write_bytes(b"TMPDIR=/elsewhere\0")
    for number in (*range(5), *range(6, 11)):
        (process / "fd" / str(number)).touch()
    assert not _belongs(process, folder)
    (process / "fd" / "5").symlink_to(folder / "log")
    assert not _belongs(process, folder)  # its flags are gone
    (process / "fdinfo" / "5").write_text("pos:\t0\nflags:\t0100001\n")
    assert _belongs(process, folder)
