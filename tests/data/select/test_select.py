"""`omr data select` on real shards: kept and dropped samples, repeated and killed runs, wrong input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.select.config import FilterConfig, SelectConfig
from data_pipeline.select.select import select
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.writer import write_shards
from launch import cli
from tests.helpers.alike import ask
from tests.helpers.two_corpora import read_drops, write_corpora


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with the shards `first` and `second`."""
    write_corpora(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["dedup", "select"])
def test_help_shows_presets_fields_and_examples(command: str, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["data", command, "--help"])
    assert not left.value.code
    text, _, examples = capsys.readouterr().out.partition("examples:\n")
    assert "--preset" in text and "--max_bad_samples" in text
    assert all(line.startswith(f"  omr data {command} ") for line in examples.strip("\n").splitlines())


def test_presets_are_checked_and_need_checked_responses(folder: Path, capsys):
    assert cli.main(["data", "select", "first", "x", "--preset", "mmfinereasn"]) == 2
    assert "mmfinereason" in capsys.readouterr().err
    assert cli.main(["data", "select", "first", "x", "--preset", "mmfinereason"]) == 2
    assert "a check against a reference answer provides" in capsys.readouterr().err


def test_unchecked_responses_are_checked(tmp_path: Path):
    texts = {
        "right": "<answer>$\\frac{1}{2}$</answer>",
        "wrong": "<answer>0.25</answer>",
        "known": "nonsense",
    }
    samples = [ask(id, "How much?", answer="0.5", response=text) for id, text in texts.items()]
    samples[2] = replace(samples[2], metadata={"accuracy": 1.0})
    samples.append(ask("unanswered", "How much?", response="no reference"))
    write_shards(samples[:3], tmp_path / "in")
    config = SelectConfig(
        shards=str(tmp_path / "in"), out=str(tmp_path / "out"), filters=FilterConfig(correct=True)
    )
    assert select(config).dropped == {"wrong": 1}
    kept = list(read_shards(tmp_path / "out"))
    assert [(s.id, s.metadata) for s in kept] == [
        ("right", {"accuracy": 1.0, "decided_by": "number"}),
        ("known", {"accuracy": 1.0}),
    ]
    write_shards(samples, tmp_path / "more")
    with pytest.raises(ValueError, match="'unanswered' has metadata accuracy=None"):
        select(replace(config, shards=str(tmp_path / "more"), out=str(tmp_path / "out2")))


def test_drops_are_listed_and_a_second_run_changes_nothing(folder: Path):
    config = SelectConfig(
        shards="first",
        out="out",
        filters=FilterConfig(min_words=2, max_words=5),
        writer=ShardConfig(samples_per_shard=2),
    )
    found = select(config)
    assert (found.kept, found.dropped) == (4, {"length": 4})
    assert [sample.id for sample in read_shards("out")] == ["a2", "a3", "a4", "a5"]
    assert [id for id, _ in read_drops(folder / "out")] == ["a0", "a1", "a6", "a7"]
    assert select(config).index.digest == found.index.digest
    with pytest.raises(ValueError, match="made with other settings: filters was .*; samples_per_shard was"):
        select(SelectConfig(shards="first", out="out"))


def test_killed_selection_can_be_repeated(folder: Path, monkeypatch):
    config = SelectConfig(shards="first", out="out", writer=ShardConfig(samples_per_shard=2))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data_pipeline.select.select.apply_filters", _stop_after_two)
        select(config)
    assert not Path("out/index.json").exists()
    assert select(config).kept == 8 and len(list(read_shards("out"))) == 8


def _stop_after_two(samples, filters, drop):
    for number, sample in enumerate(samples):
        if number == 2:
            raise KeyboardInterrupt
        yield sample


def test_keeping_nothing_is_an_error(folder: Path):
    config = SelectConfig(shards="first", out="out", filters=FilterConfig(min_words=99))
    with pytest.raises(ValueError, match=r"no sample of .* is kept \({'length': 8}\)"):
        select(config)


def test_unreadable_samples_are_counted_and_too_many_stop(folder: Path):
    path = Path("second/shard-000000-0000.tar")
    path.write_bytes(path.read_bytes()[:2000])
    found = select(SelectConfig(shards="second", out="out"))
    assert found.dropped == {"unreadable": 3} and found.kept == 1
    with pytest.raises(ValueError, match="3 of 4 samples are bad, more than max_bad_samples=2"):
        select(SelectConfig(shards="second", out="out2", max_bad_samples=2))


def test_missing_list_of_duplicates_is_named(folder: Path):
    with pytest.raises(ValueError, match="duplicates=nowhere.jsonl is not a file"):
        select(SelectConfig(shards="first", out="out", duplicates="nowhere.jsonl"))
