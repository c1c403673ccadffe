"""`omr data dedup` and `omr data select` on real shards: what is written, resumed, refused and said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.select.config import DedupConfig, DedupRunConfig, FilterConfig, SelectConfig
from data_pipeline.select.dedup import deduplicate
from data_pipeline.select.select import select
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from launch import cli
from tests.helpers.alike import ask, jpeg, photographs, png


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two corpora and a benchmark."""
    a, b, c = (png(photographs()[i]) for i in (3, 5, 7))
    first = [ask(f"a{i}", f"How many are {i}?", answer=str(i), response="so " * i) for i in range(7)]
    first += [ask("a7", "Who is it?", a, response="x")]
    second = [
        ask("b0", "Who is it?", a, response="y"),
        ask("b1", "Who is it?", jpeg(photographs()[3]), response="y"),
        ask("b2", "Who is it?", b, response="y"),
        ask("b3", "What time is it?", c, response="y"),
    ]
    write_shards(first, tmp_path / "first", ShardConfig(samples_per_shard=3))
    write_shards(second, tmp_path / "second", ShardConfig(samples_per_shard=3))
    write_shards([ask("t0", "What time is it?", jpeg(photographs()[7], 80))], tmp_path / "bench")
    return tmp_path


def drops(folder: Path) -> list[list[str]]:
    lists = [json.loads(path.read_text()) for path in sorted((folder / "dropped").iterdir())]
    return [pair for found in lists for pair in [*found["dropped"], *found["bad"]]]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_the_command_line(shards: Path, capsys, monkeypatch):
    monkeypatch.chdir(shards)
    assert cli.main(["data", "dedup", "first", "second", "--out", "dd", "--against", "bench"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [
        "corpus", "samples", "exact", "near", "contamination", "reported", "unreadable", "kept",
    ]  # fmt: skip
    assert [line.split() for line in printed[1:4]] == [
        ["first", "8", "0", "0", "0", "0", "0", "8"],
        ["second", "4", "1", "1", "1", "0", "0", "1"],
        ["all", "12", "1", "1", "1", "0", "0", "9"],
    ]
    found = lines(shards / "dd/duplicates.jsonl")
    shares = ["data", "dedup", "first", "second", "--out", "d5", "--against", "bench", "--shares", "5"]
    assert cli.main([*shares, "--workers", "2"]) == 0
    capsys.readouterr()
    assert lines(shards / "d5/duplicates.jsonl") == found, "in order, whatever the shares"
    assert [(row["id"], row["of"], row["kind"], row["shard"], row["source"]) for row in found] == [
        ("b0", "a7", "exact", 0, "made"),
        ("b1", "a7", "near", 0, "made"),
        ("b3", "t0", "contamination", 1, "made"),
    ]
    for name, kept in (("first", [f"a{i}" for i in range(8)]), ("second", ["b2"])):
        words = ["data", "select", name, f"{name}_kept", "--duplicates", "dd/duplicates.jsonl"]
        assert cli.main(words) == 0
        assert [sample.id for sample in read_shards(f"{name}_kept")] == kept
    assert drops(shards / "second_kept") == [
        ["b0", "duplicate"],
        ["b1", "duplicate"],
        ["b3", "contamination"],
    ]
    said = "1 samples kept in second_kept\n  2 dropped: duplicate\n  1 dropped: contamination"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("command", ["dedup", "select"])
def test_help_explains_and_ends_with_examples(command: str, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["data", command, "--help"])
    assert not left.value.code
    text, _, examples = capsys.readouterr().out.partition("examples:\n")
    assert "--preset" in text and "--max_bad_samples" in text
    assert all(line.startswith(f"  omr data {command} ") for line in examples.strip("\n").splitlines())


def test_presets_and_fields_go_together(shards: Path, capsys, monkeypatch):
    monkeypatch.chdir(shards)
    words = ["data", "dedup", "first", "second", "--out", "dd", "--preset", "openmmreasoner"]
    assert cli.main([*words, "--dedup.threshold", "0.999"]) == 0
    used = json.loads((shards / "dd/dedup.json").read_text())["made_of"]["dedup"]
    assert (used["scope"], used["rule"], used["threshold"]) == ("across", "joined", 0.999)
    capsys.readouterr()
    assert cli.main(["data", "select", "first", "x", "--preset", "mmfinereasn"]) == 2
    assert "did you mean 'mmfinereason'?" in capsys.readouterr().err
    assert cli.main(["data", "select", "first", "x", "--preset", "mmfinereason"]) == 2
    assert "a check against a reference answer provides" in capsys.readouterr().err


def test_responses_that_nobody_checked_are_checked(tmp_path: Path):
    said = {"right": "<answer>$\\frac{1}{2}$</answer>", "wrong": "<answer>0.25</answer>", "known": "nonsense"}
    samples = [ask(id, "How much?", answer="0.5", response=text) for id, text in said.items()]
    samples[2] = replace(samples[2], metadata={"accuracy": 1.0})
    samples.append(ask("unanswered", "How much?", response="no reference"))
    write_shards(samples[:3], tmp_path / "in")
    config = SelectConfig(
        source=str(tmp_path / "in"), out=str(tmp_path / "out"), filters=FilterConfig(correct=True)
    )
    assert select(config).dropped == {"wrong": 1}
    kept = list(read_shards(tmp_path / "out"))
    assert [(s.id, s.metadata) for s in kept] == [
        ("right", {"accuracy": 1.0, "decided_by": "number"}),
        ("known", {"accuracy": 1.0}),
    ]
    write_shards(samples, tmp_path / "more")
    with pytest.raises(ValueError, match="'unanswered' has metadata accuracy=None"):
        select(replace(config, source=str(tmp_path / "more"), out=str(tmp_path / "out2")))


def test_selecting_drops_by_reason_and_says_the_same_twice(shards: Path):
    config = SelectConfig(
        source=str(shards / "first"),
        out=str(shards / "out"),
        filters=FilterConfig(min_words=2, max_words=5),
        samples_per_shard=2,
    )
    found = select(config)
    assert (found.kept, found.dropped) == (4, {"length": 4})
    assert [sample.id for sample in read_shards(shards / "out")] == ["a2", "a3", "a4", "a5"]
    assert [id for id, _ in drops(shards / "out")] == ["a0", "a1", "a6", "a7"]
    assert select(config).index.digest == found.index.digest
    with pytest.raises(ValueError, match="made with another filters, samples_per_shard"):
        select(SelectConfig(source=config.source, out=config.out))


def test_a_killed_selection_starts_over(shards: Path, monkeypatch):
    config = SelectConfig(source=str(shards / "first"), out=str(shards / "out"), samples_per_shard=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data_pipeline.select.select.keep", _killed)
        select(config)
    assert not (shards / "out/index.json").exists()
    assert select(config).kept == 8 and len(list(read_shards(shards / "out"))) == 8


def _killed(samples, filters, drop):
    for number, sample in enumerate(samples):
        if number == 2:
            raise KeyboardInterrupt
        yield sample


def test_nothing_kept_is_an_error(shards: Path):
    config = SelectConfig(
        source=str(shards / "first"), out=str(shards / "out"), filters=FilterConfig(min_words=99)
    )
    with pytest.raises(ValueError, match=r"no sample of .* is kept \({'length': 8}\)"):
        select(config)


def test_torn_shards_are_counted_and_too_many_stop(shards: Path):
    path = shards / "second/shard-000000-0000.tar"
    path.write_bytes(path.read_bytes()[:2000])
    found = select(SelectConfig(source=str(shards / "second"), out=str(shards / "out")))
    assert found.dropped == {"unreadable": 3} and found.kept == 1
    rows = deduplicate(DedupRunConfig(inputs=(str(shards / "second"),), out=str(shards / "dd")))
    assert (rows[0].unreadable, rows[0].kept) == (3, 1)
    with pytest.raises(ValueError, match="cannot be read, more than max_bad_samples=2, the last"):
        select(SelectConfig(source=str(shards / "second"), out=str(shards / "out2"), max_bad_samples=2))
    with pytest.raises(ValueError, match="3 samples cannot be read, more than max_bad_samples=2"):
        deduplicate(
            DedupRunConfig(inputs=(str(shards / "second"),), out=str(shards / "dd"), max_bad_samples=2)
        )


def test_fingerprints_are_made_once(shards: Path, monkeypatch):
    config = DedupRunConfig(inputs=(str(shards / "first"), str(shards / "second")), out=str(shards / "dd"))
    deduplicate(config)
    before = (shards / "dd/duplicates.jsonl").read_bytes()
    (shards / "dd/fingerprints/x.npz.1.partial").touch()  # of a worker that was killed
    monkeypatch.setattr("data_pipeline.select.dedup.fingerprint_shard", None)  # must not be called again
    deduplicate(config)
    assert (shards / "dd/duplicates.jsonl").read_bytes() == before
    assert not list((shards / "dd").rglob("*.partial"))
    monkeypatch.undo()
    (shards / "moved").mkdir()
    for path in (shards / "second").iterdir():
        path.rename(shards / "moved" / path.name)
    found = select(
        SelectConfig(
            source=str(shards / "moved"),
            out=str(shards / "out"),
            duplicates=str(shards / "dd/duplicates.jsonl"),
        )
    )
    assert found.dropped == {"duplicate": 2}, "a corpus is known by its content"


def test_the_sample_in_the_benchmark_is_dropped_and_not_one_of_the_same_id(shards: Path):
    samples = [ask("same", text, response="x") for text in ("How many are 3?", "What time is it?")]
    samples[1] = replace(samples[1], images=(jpeg(photographs()[7]),))
    samples[1] = replace(samples[1], messages=ask("", "What time is it?", b"", response="x").messages)
    write_shards([samples[0], samples[1], samples[0]], shards / "twins")
    against, twins, out = str(shards / "bench"), str(shards / "twins"), str(shards / "out")
    config = DedupRunConfig(inputs=(twins,), out=str(shards / "dd"), against=(against,))
    assert deduplicate(config)[0].dropped == {"exact": 1, "near": 0, "contamination": 1, "reported": 0}
    assert select(SelectConfig(source=twins, out=out, duplicates=f"{config.out}/duplicates.jsonl")).kept == 1
    assert list(read_shards(out)) == [samples[0]]
    assert drops(shards / "out") == [["same", "contamination"], ["same", "duplicate"]]


def test_lists_are_per_shard_and_what_changed_is_refused(shards: Path):
    first, second = str(shards / "first"), str(shards / "second")
    deduplicate(
        DedupRunConfig(inputs=(first, second), out=str(shards / "dd"), against=(str(shards / "bench"),))
    )
    digest = ShardIndex.load(second).digest
    found = {
        str(path.relative_to(shards / "dd/lists")): path for path in (shards / "dd/lists").rglob("*.json")
    }
    assert sorted(found) == [f"{digest}/000000.json", f"{digest}/000001.json"], (
        "none where nothing is dropped"
    )
    said = json.loads(found[f"{digest}/000001.json"].read_text())
    assert said == {"readable": 1, "drops": [[0, "b3", "contamination"]]}
    place = shards / "dd/duplicates.jsonl"
    config = SelectConfig(source=second, out=str(shards / "out"), duplicates=str(place))
    with pytest.raises(ValueError, match="knows .*first, .*second, as they were then, but not the corpus"):
        select(replace(config, source=str(shards / "bench")))
    before = place.read_bytes()
    place.write_bytes(before[: before.index(b"\n") + 1])
    with pytest.raises(ValueError, match="it was changed, moved without dedup.json"):
        select(config)
    place.write_bytes(before)
    found[f"{digest}/000001.json"].unlink()
    with pytest.raises(ValueError, match="it was changed, moved without dedup.json"):
        select(config)


def test_a_shard_that_cannot_be_read_as_before_is_no_guess(shards: Path):
    second, dd = shards / "second", shards / "dd"
    run = DedupRunConfig(inputs=(str(second),), out=str(dd), against=(str(shards / "bench"),))
    deduplicate(run)
    path = second / "shard-000000-0000.tar"
    whole = path.read_bytes()
    index = ShardIndex.load(second)
    offset = index.rows(0).ref(index.shards[0], 1).offset
    path.write_bytes(whole[: offset + 5] + b"!" + whole[offset + 6 :])
    config = SelectConfig(
        source=str(second), out=str(shards / "out"), duplicates=str(dd / "duplicates.jsonl")
    )
    with pytest.raises(ValueError, match="row 1 was 'b1', now it is 'b2'"):
        select(config)
    for fingerprints in (dd / "fingerprints").iterdir():
        fingerprints.unlink()
    assert deduplicate(run)[0].unreadable == 1, "and compared again, as other samples can be read"
    assert select(replace(config, out=str(shards / "torn"))).dropped == {"contamination": 1, "checksum": 1}
    path.write_bytes(whole)
    assert deduplicate(run)[0].unreadable == 0, "what could not be read is tried again"
    assert select(replace(config, out=str(shards / "mended"))).dropped == {"duplicate": 1, "contamination": 1}


def test_nothing_is_compared_again_unless_something_changed(shards: Path, monkeypatch):
    config = DedupRunConfig(inputs=(str(shards / "first"), str(shards / "second")), out=str(shards / "dd"))
    rows = deduplicate(config)
    written = (shards / "dd/duplicates.jsonl").stat().st_mtime_ns
    monkeypatch.setattr("data_pipeline.select.dedup.find_duplicates", None)  # must not be called again
    assert deduplicate(replace(config, workers=2)) == rows
    assert (shards / "dd/duplicates.jsonl").stat().st_mtime_ns == written
    for changed in (dict(against=(str(shards / "bench"),)), dict(dedup=DedupConfig(scope="within")),
                    dict(inputs=config.inputs[:1]), dict(inputs=config.inputs[::-1])):  # fmt: skip
        with pytest.raises(TypeError, match="not callable"):
            deduplicate(replace(config, **changed))
    monkeypatch.undo()
    alone = deduplicate(replace(config, inputs=config.inputs[1:]))
    assert alone[0].dropped["exact"] == 0 and len(list((shards / "dd/lists").iterdir())) == 1


def test_mistakes_are_named(shards: Path, tmp_path: Path):
    twice = DedupRunConfig(inputs=(str(shards / "first"), str(shards / "first")), out=str(tmp_path / "dd"))
    with pytest.raises(ValueError, match="holds the same shards as"):
        deduplicate(twice)
    with pytest.raises(ValueError, match="inputs is empty"):
        deduplicate(DedupRunConfig(inputs=()))
    missing = SelectConfig(source=str(shards / "first"), out=str(tmp_path / "o"), duplicates="nowhere.jsonl")
    with pytest.raises(ValueError, match="duplicates=nowhere.jsonl is not a file"):
        select(missing)
    for fault in (dict(threshold=0.0), dict(image_threshold=1.5), dict(exact_below=-1)):
        with pytest.raises(ValueError, match="dedup."):
            DedupConfig(**fault)
