"""`omr data`: its list of commands, presets, and the demo's corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.select.config import DEDUP_PRESETS, FILTER_PRESETS
from data_pipeline.shards.index import ShardIndex
from launch.cli import main
from launch.data_commands import DATA


def test_bare_group_lists_its_commands_with_first_lines(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leave:
        main(["data"])
    printed = capsys.readouterr()
    assert leave.value.code == 2 and not printed.out
    for command in DATA.commands:
        assert f"\n  {command} " in printed.err
    assert "Keep the samples that pass filters" in printed.err and "Every filter is off" not in printed.err


def test_presets_are_those_of_the_configs():
    assert set(DATA.commands["select"].commands) == set(FILTER_PRESETS)
    assert set(DATA.commands["dedup"].commands) == set(DEDUP_PRESETS)


def test_data_command_writes_every_split(tmp_path: Path):
    counts = {"train": 6, "validation": 2, "test": 3}
    options = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    assert main(["data", "digits", str(tmp_path), *options]) == 0
    assert {name: len(ShardIndex.load(tmp_path / name)) for name in counts} == counts


def test_interrupted_data_continues(tmp_path: Path) -> None:
    command = ["data", "digits", str(tmp_path), "--train", "6", "--validation", "3", "--test", "4"]
    assert main(command) == 0
    first = (tmp_path / "train" / "index.json").read_bytes()
    (tmp_path / "test" / "index.json").unlink()  # as after a kill before the last split was complete
    for left in (tmp_path / "test").iterdir():
        left.unlink()
    assert main(command) == 0
    assert (tmp_path / "train" / "index.json").read_bytes() == first
    assert (tmp_path / "test" / "index.json").exists()


@pytest.mark.parametrize("option", [["--video"], ["--seed", "7"]])
def test_another_corpus_is_not_called_complete(
    tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
):
    command = ["data", "digits", str(tmp_path), "--train", "2", "--validation", "1", "--test", "1"]
    assert main(command) == 0
    assert main([*command, *option]) == 2
    assert "begins with digits/train/42/000000, not with digit" in capsys.readouterr().err
