"""`omr data dedup` on real shards: lists and counts, what is done again and what is not, wrong input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.config import WorkConfig
from data_pipeline.select.config import DedupConfig, DedupRunConfig, SelectConfig
from data_pipeline.select.dedup import list_duplicates
from data_pipeline.select.select import select
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from launch import cli
from tests.helpers.alike import ask, jpeg, photographs
from tests.helpers.two_corpora import read_drops, write_corpora


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with the shards `first`, `second` and `bench`."""
    write_corpora(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


BOTH = DedupRunConfig(shards=("first", "second"), out="dd")


def test_command_line_lists_duplicates_and_select_drops_them(folder: Path, capsys):
    assert cli.main(["data", "dedup", "first", "second", "--out", "dd", "--against", "bench"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[:4]] == [
        ["corpus", "samples", "exact", "near", "contamination", "reported", "unreadable", "kept"],
        ["first", "8", "0", "0", "0", "0", "0", "8"],
        ["second", "4", "1", "1", "1", "0", "0", "1"],
        ["all", "12", "1", "1", "1", "0", "0", "9"],
    ]
    found = [json.loads(line) for line in Path("dd/duplicates.jsonl").read_text().splitlines()]
    assert [(row["id"], row["of"], row["kind"], row["shard"], row["source"]) for row in found] == [
        ("b0", "a7", "exact", 0, "made"),
        ("b1", "a7", "near", 0, "made"),
        ("b3", "t0", "contamination", 1, "made"),
    ]
    for name, kept in (("first", [f"a{i}" for i in range(8)]), ("second", ["b2"])):
        words = ["data", "select", name, f"{name}_kept", "--duplicates", "dd/duplicates.jsonl"]
        assert cli.main(words) == 0
        assert [sample.id for sample in read_shards(f"{name}_kept")] == kept
    assert read_drops(folder / "second_kept") == [
        ["b0", "duplicate"],
        ["b1", "duplicate"],
        ["b3", "contamination"],
    ]
    said = "1 samples kept in second_kept\n  2 dropped: duplicate\n  1 dropped: contamination"
    assert said in capsys.readouterr().out


def test_shares_and_workers_give_the_same_list(folder: Path):
    config = replace(BOTH, against=("bench",))
    list_duplicates(config)
    list_duplicates(replace(config, out="d5", shares=5, work=WorkConfig(workers=2)))
    assert Path("d5/duplicates.jsonl").read_bytes() == Path("dd/duplicates.jsonl").read_bytes()


def test_preset_and_fields_combine(folder: Path):
    words = ["data", "dedup", "first", "second", "--out", "dd", "--preset", "openmmreasoner"]
    assert cli.main([*words, "--dedup.threshold", "0.999"]) == 0
    used = json.loads(Path("dd/drop_lists/settings.json").read_text())["dedup"]
    assert (used["scope"], used["rule"], used["threshold"]) == ("across", "joined", 0.999)


def test_fingerprints_are_used_again(folder: Path, monkeypatch):
    list_duplicates(BOTH)
    before = Path("dd/duplicates.jsonl").read_bytes()
    Path("dd/fingerprints/x.npz.1.partial").touch()  # of a worker that was killed
    monkeypatch.setattr("data_pipeline.select.dedup.fingerprint_samples", None)  # must not be called again
    list_duplicates(replace(BOTH, dedup=DedupConfig(scope="within")))
    list_duplicates(BOTH)
    assert Path("dd/duplicates.jsonl").read_bytes() == before
    assert not list(Path("dd").rglob("*.partial"))


def test_moved_corpus_is_known_by_its_content(folder: Path):
    list_duplicates(BOTH)
    Path("second").rename("moved")
    assert select(SelectConfig(shards="moved", out="out", duplicates="dd/duplicates.jsonl")).dropped == {
        "duplicate": 2
    }
    assert list(list_duplicates(replace(BOTH, shards=("first", "moved")))) == ["first", "moved"]


def test_nothing_is_compared_again_unless_something_changed(folder: Path, monkeypatch):
    rows = list_duplicates(BOTH)
    written = Path("dd/duplicates.jsonl").stat().st_mtime_ns
    monkeypatch.setattr("data_pipeline.select.dedup.find_duplicates", None)  # must not be called again
    assert list_duplicates(replace(BOTH, work=WorkConfig(workers=2))) == rows
    assert Path("dd/duplicates.jsonl").stat().st_mtime_ns == written
    for changed in (dict(against=("bench",)), dict(dedup=DedupConfig(scope="within")),
                    dict(shards=("first",)), dict(shards=("second", "first"))):  # fmt: skip
        with pytest.raises(TypeError, match="not callable"):
            list_duplicates(replace(BOTH, **changed))
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    alone = list_duplicates(replace(BOTH, shards=("second",)))
    assert alone["second"]["exact"] == 0
    assert len([path for path in Path("dd/drop_lists").iterdir() if path.is_dir()]) == 1


def test_killed_before_the_counts_is_compared_again(folder: Path):
    rows = list_duplicates(BOTH)
    Path("dd/drop_lists/counts.json").unlink()
    config = SelectConfig(shards="second", out="out", duplicates="dd/duplicates.jsonl")
    with pytest.raises(ValueError, match="not finished"):
        select(config)
    assert list_duplicates(BOTH) == rows and select(config).dropped == {"duplicate": 2}


def test_benchmark_sample_is_dropped_and_not_another_with_its_id(folder: Path):
    question = ask("same", "What time is it?", jpeg(photographs()[7]), response="x")
    other = ask("same", "How many are 3?", response="x")
    write_shards([other, question, other], "twins")
    config = DedupRunConfig(shards=("twins",), out="dd", against=("bench",))
    assert list_duplicates(config) == {
        "twins": dict(samples=3, exact=1, near=0, contamination=1, reported=0, unreadable=0, kept=1)
    }
    assert select(SelectConfig(shards="twins", out="out", duplicates="dd/duplicates.jsonl")).kept == 1
    assert list(read_shards("out")) == [other]
    assert read_drops(folder / "out") == [["same", "contamination"], ["same", "duplicate"]]


def test_changed_or_foreign_lists_are_refused(folder: Path):
    list_duplicates(replace(BOTH, against=("bench",)))
    digest = ShardIndex.load("second").digest
    lists = {str(path.relative_to("dd/drop_lists")): path for path in Path("dd/drop_lists").rglob("0*.json")}
    assert sorted(lists) == [f"{digest}/000000.json", f"{digest}/000001.json"], "none where nothing is listed"
    listed = json.loads(lists[f"{digest}/000001.json"].read_text())
    assert listed == {"readable": 1, "drops": [[0, "b3", "contamination"]]}
    duplicates = Path("dd/duplicates.jsonl")
    config = SelectConfig(shards="second", out="out", duplicates=str(duplicates))
    with pytest.raises(ValueError, match="is about first, second, as they were then, not about the corpus"):
        select(replace(config, shards="bench"))
    before = duplicates.read_bytes()
    duplicates.write_bytes(before[: before.index(b"\n") + 1])
    with pytest.raises(ValueError, match="one of them was changed"):
        select(config)
    duplicates.write_bytes(before)
    lists[f"{digest}/000001.json"].unlink()
    with pytest.raises(ValueError, match="one of them was changed"):
        select(config)


def test_shard_that_changed_since_is_refused_and_compared_again(folder: Path):
    config = DedupRunConfig(shards=("second",), out="dd", against=("bench",))
    list_duplicates(config)
    path, index = Path("second/shard-000000-0000.tar"), ShardIndex.load("second")
    whole = path.read_bytes()
    offset = index.rows(0).ref(index.shards[0], 1).offset
    path.write_bytes(whole[: offset + 5] + b"!" + whole[offset + 6 :])
    selected = SelectConfig(shards="second", out="out", duplicates="dd/duplicates.jsonl")
    with pytest.raises(ValueError, match="row 1 was 'b1', now it is 'b2'"):
        select(selected)
    for fingerprints in Path("dd/fingerprints").iterdir():
        fingerprints.unlink()
    assert list_duplicates(config)["second"]["unreadable"] == 1, (
        "compared again, because other samples can be read"
    )
    assert select(replace(selected, out="torn")).dropped == {"contamination": 1, "checksum": 1}
    path.write_bytes(whole)
    assert list_duplicates(config)["second"]["unreadable"] == 0, (
        "shards with unreadable samples are fingerprinted again"
    )
    assert select(replace(selected, out="fixed")).dropped == {"duplicate": 1, "contamination": 1}


def test_unreadable_samples_are_counted_and_too_many_stop(folder: Path):
    path = Path("second/shard-000000-0000.tar")
    path.write_bytes(path.read_bytes()[:2000])
    config = DedupRunConfig(shards=("second",), out="dd")
    rows = list_duplicates(config)
    assert (rows["second"]["unreadable"], rows["second"]["kept"]) == (3, 1)
    for limit, accepted in ((2, False), (3, True), (0.7, False), (0.8, True)):
        limited = replace(config, max_bad_samples=limit)
        if accepted:
            assert list_duplicates(limited) == rows
        else:
            with pytest.raises(
                ValueError, match=f"3 of 4 samples are bad, more than max_bad_samples={limit}"
            ):
                list_duplicates(limited)


def test_wrong_input_is_named(folder: Path):
    with pytest.raises(ValueError, match="first holds the same shards as first"):
        list_duplicates(DedupRunConfig(shards=("first", "first"), out="dd"))
    with pytest.raises(ValueError, match="shards is empty"):
        list_duplicates(DedupRunConfig(shards=()))
    Path("dd/drop_lists").mkdir(parents=True)
    Path("dd/drop_lists/notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        list_duplicates(BOTH)
    for fault in (dict(threshold=0.0), dict(image_threshold=1.5), dict(exact_below=-1)):
        with pytest.raises(ValueError, match="dedup."):
            DedupConfig(**fault)
