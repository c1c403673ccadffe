"""Rows from every kind of source, imports that end, resume or stop, and what --check tells."""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, DatasetDict

from data_pipeline.errors import BadSample
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.check_rows import check_corpus
from data_pipeline.sources.config import CheckRowsConfig, ImportConfig
from data_pipeline.sources.import_corpus import import_corpus
from data_pipeline.sources.readers import read_rows
from launch import cli
from tests.helpers.corpora import FIXTURES, fixture_rows, write_corpus

CLOCK = (FIXTURES / "images" / "clock.jpg").read_bytes()
ROWS = [
    {"id": f"q{number}", "question": f"What is {number} + 1?", "answer": number + 1} for number in range(40)
]


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


# ---- sources


def test_json_lines_and_arrays_give_the_same_rows(tmp_path: Path):
    lines = jsonl(tmp_path / "a.jsonl", ROWS)
    array = tmp_path / "b.json"
    array.write_text("\ufeff" + json.dumps(ROWS, indent=3))
    misnamed = jsonl(tmp_path / "c.json", ROWS)
    for path in (lines, array, misnamed):
        assert list(read_rows(str(path))) == ROWS


def test_an_array_is_read_in_constant_memory(tmp_path: Path):
    path = tmp_path / "big.json"
    path.write_text(json.dumps([{"question": "x" * 1_000, "answer": number} for number in range(30_000)]))
    tracemalloc.start()
    assert sum(1 for _ in read_rows(str(path))) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6 < path.stat().st_size, f"{peak / 1e6:.0f} MB at the most"


def test_a_broken_line_is_a_bad_row_and_not_the_end(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"answer": 1}\n{"answer": \n[1, 2]\n\n{"answer": "\xff"}\n{"answer": 4}\n')
    rows = list(read_rows(str(path)))
    assert rows[0] == {"answer": 1} and rows[4] == {"answer": 4} and len(rows) == 5
    assert isinstance(rows[1], BadSample) and "line 2" in str(rows[1])
    assert isinstance(rows[2], BadSample) and rows[2].reason == "schema"
    assert rows[3] == {"answer": "\udcff"}, "the row's own adapter refuses broken bytes"


def test_an_array_that_ends_early_keeps_what_came_before(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS)[:-20])
    *whole, last = read_rows(str(path))
    assert whole == ROWS[:-1] and isinstance(last, BadSample)


def test_parquet_gives_images_as_the_bytes_they_are(tmp_path: Path):
    path = write_corpus("mmfinereason", tmp_path)
    assert [row["image"]["bytes"] for row in read_rows(str(path))][1] == CLOCK


def test_parquet_is_read_in_constant_memory(tmp_path: Path):
    rows = {"image": [random.Random(number).randbytes(10_000) for number in range(3_000)]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet", batch_size=500)
    before, pool = pyarrow.total_allocated_bytes(), pyarrow.total_allocated_bytes
    peak = max(pool() - before for _ in read_rows(str(tmp_path / "a.parquet")))
    assert peak < 15e6, f"{peak / 1e6:.0f} MB of 30"


def test_a_folder_is_read_by_split(tmp_path: Path):
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        Dataset.from_list(ROWS[number : number + 1]).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("a card")
    assert [row["id"] for row in read_rows(str(tmp_path), split="train")] == ["q0", "q1"]
    assert [row["id"] for row in read_rows(str(tmp_path), split="test")] == ["q2"]
    assert len(list(read_rows(str(tmp_path)))) == 3
    with pytest.raises(ValueError, match=r"split='dev'; it holds test-00000"):
        read_rows(str(tmp_path), split="dev")


def test_what_datasets_saved_is_read(tmp_path: Path):
    one, two = Dataset.from_list(ROWS[:3]), Dataset.from_list(ROWS[3:5])
    one.save_to_disk(tmp_path / "one")
    DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    assert list(read_rows(str(tmp_path / "one"))) == list(read_rows(str(tmp_path / "both"))) == ROWS[:3]
    assert list(read_rows(str(tmp_path / "both"), split="test")) == ROWS[3:5]
    with pytest.raises(ValueError, match="must be one of train, test"):
        read_rows(str(tmp_path / "both"), split="dev")


def test_webdataset_tars_of_others_are_read(tmp_path: Path):
    fields = {"question": "What time is it?", "answer": "3:00"}
    path = tar(
        tmp_path / "a.tar",
        {
            "x/1.json": json.dumps(fields).encode(),
            "x/1.10.jpg": CLOCK + b"10",
            "x/1.2.jpg": CLOCK,
            "x/2.txt": b"a caption",
            "x/3.json": b"{",
        },
    )
    first, second, third = read_rows(str(path))
    assert first == {"id": "x/1", **fields, "images": [CLOCK, CLOCK + b"10"]}
    assert second == {"id": "x/2", "txt": "a caption"}
    assert isinstance(third, BadSample)


def test_our_own_shards_are_a_source(tmp_path: Path):
    source = write_corpus("messages", tmp_path)
    import_corpus("messages", ImportConfig(path=str(source), out=str(tmp_path / "a"), images=str(FIXTURES)))
    import_corpus("messages", ImportConfig(path=str(tmp_path / "a"), out=str(tmp_path / "b")))
    for one, two in zip(read_shards(tmp_path / "a"), read_shards(tmp_path / "b"), strict=True):
        assert (one.messages, one.images, one.answer) == (two.messages, two.images, two.answer)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_torn_file_is_named(tmp_path: Path, name: str):
    whole = tar(tmp_path / "whole", {"1.json": b"{}", "1.png": CLOCK}).read_bytes()
    (tmp_path / name).write_bytes(whole[:1_200])
    with pytest.raises(ValueError, match=rf"{name}.* cannot be read"):
        list(read_rows(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "neither a file nor a folder"),
        ("", "neither"),
        ("a.csv", "convert it"),
        ("empty", "holds no"),
    ],
)
def test_a_source_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("a,b")
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=said):
        read_rows(path or "a/b/c")


def test_without_datasets_the_way_to_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_corpus("mmk12", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        list(read_rows(str(path)))


# ---- imports


def bad_rows(count: int) -> list:
    return [{"id": f"bad{number}", "question": "", "answer": "1"} for number in range(count)]


def config(path: Path, **options: object) -> ImportConfig:
    return ImportConfig(path=str(path), out=str(path.parent / "shards"), **options)


def test_bad_rows_are_dropped_and_counted(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", [*ROWS[:20], *bad_rows(1), *ROWS[20:]])
    tally = import_corpus("questions", config(path))
    assert tally is not None and (tally.rows, tally.samples) == (41, 40)
    assert tally.dropped == {"text": 1}
    assert (
        tally.cases()
        == "  1 text, the first: row 20: text: question: wanted text, saw an empty one; drop the row"
    )
    refs = ShardIndex.load(tmp_path / "shards").refs
    assert [ref.id.rpartition("-")[0] for ref in refs] == [f"questions/q{n}" for n in range(40)]
    said = json.loads((tmp_path / "shards" / "import.json").read_text())
    assert said["dropped"] == {"text": 1} and said["digest"] == ShardIndex.load(tmp_path / "shards").digest


@pytest.mark.parametrize("most", [0, 2, 0.05])
def test_too_many_bad_rows_stop_it(tmp_path: Path, most: float):
    path = jsonl(tmp_path / "a.jsonl", [*ROWS, *bad_rows(3)])
    with pytest.raises(ValueError, match=rf"of 4[123] rows are bad, more than max_bad_samples={most:g}"):
        import_corpus("questions", config(path, max_bad_samples=most))
    assert not (tmp_path / "shards" / "index.json").exists(), "and nothing counts as done"
    assert import_corpus("questions", config(path, max_bad_samples=3)) is not None


def test_a_finished_import_is_not_done_again(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    assert import_corpus("questions", config(path, limit=5)) is not None
    before = (tmp_path / "shards" / "index.json").stat().st_mtime_ns
    assert import_corpus("questions", config(path, limit=5)) is None
    assert (tmp_path / "shards" / "index.json").stat().st_mtime_ns == before
    assert len(ShardIndex.load(tmp_path / "shards")) == 5
    with pytest.raises(ValueError, match="another import"):
        import_corpus("questions", config(path))


def test_shards_of_others_are_not_taken_for_an_import(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    import_corpus("questions", config(path))
    write_shards(read_shards(tmp_path / "shards"), tmp_path / "mine")
    with pytest.raises(ValueError, match="another import"):
        import_corpus("questions", ImportConfig(path=str(path), out=str(tmp_path / "mine")))


@pytest.mark.parametrize("wrong", [{"limit": -1}, {"max_bad_samples": -0.1}, {"samples_per_shard": 0}])
def test_wrong_options_are_named(wrong: dict):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}=.* must be at least"):
        config(Path("a.jsonl"), **wrong)


def test_nothing_fitting_is_an_error(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(ValueError, match="no row of"):
        import_corpus("questions", config(path))
    with pytest.raises(ValueError, match="is not a folder"):
        import_corpus("questions", config(jsonl(path, ROWS), images=str(tmp_path / "none")))


# ---- --check


def check(corpus: str, path: Path, **options: object) -> tuple[bool, str]:
    report = check_corpus(corpus, CheckRowsConfig(path=str(path), **options))
    return report.ok, "\n".join(report.lines)


def test_check_shows_what_matches(tmp_path: Path):
    ok, said = check("llava_cot", write_corpus("llava_cot", tmp_path), images=str(FIXTURES))
    assert ok and said.startswith("llava_cot: 3 of 3 rows match\nrow 0 becomes llava_cot/sqa/11-")
    assert "image      PNG, 56 x 56" in said and "answer     B" in said
    assert [path.name for path in tmp_path.iterdir()] == ["llava_cot.jsonl"], "writes nothing"


def test_check_says_row_wanted_seen_and_fix(tmp_path: Path):
    rows = [dict(row) for row in ROWS[:8]]
    del rows[1]["question"]
    rows[2]["question"] = ["a", "b"]
    rows[4]["image"] = "missing.png"
    rows[5]["images"] = [(FIXTURES / "images" / "bars.png").read_bytes()[:150].hex()]
    rows[6]["answer"] = ""
    ok, said = check("questions", jsonl(tmp_path / "a.jsonl", rows))
    assert not ok and said.startswith("questions: 3 of 8 rows match")
    assert "row 1, schema: question: wanted a column with text, saw nothing; this row has id, answer" in said
    assert "row 2, schema: question: wanted text, saw a list of 2, first str 'a'; " in said
    assert "row 4, image: cannot read" in said and "is --images the right folder?" in said
    assert "row 6, text: answer: wanted text, saw an empty one; drop the row" in said


def test_check_decodes_images_in_full(tmp_path: Path):
    torn = (FIXTURES / "images" / "clock.jpg").read_bytes()[:700]
    (tmp_path / "torn.jpg").write_bytes(torn)
    ok, said = check("questions", jsonl(tmp_path / "a.jsonl", [{**ROWS[0], "image": "torn.jpg"}]))
    assert not ok and "row 0, image: cannot decode 700 bytes" in said


def test_check_names_the_corpora_that_would_fit(tmp_path: Path):
    ok, said = check("llava_cot", write_corpus("mmk12", tmp_path))
    assert not ok and "0 of 2 rows match" in said
    assert "the first row fits questions, mmfinereason, mmk12, virl39k, we_math_standard, we_math_pro" in said


def test_check_counts_rows_without_an_answer_and_shortens(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = [{"messages": turns}] * 50 + [{"messages": []}] * 5
    ok, said = check("messages", jsonl(tmp_path / "a.jsonl", rows))
    assert ok and "50 matching rows have no reference answer, the first is row 0" in said
    assert said.count("a list of turns") == 3 and "and 2 more rows like these" in said


# ---- the command


def test_command_imports_checks_and_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_corpus("mmr1", tmp_path)
    words = ["data", "import", "mmr1", str(path), "--images", str(FIXTURES)]
    with pytest.raises(SystemExit) as left:
        cli.main([*words, "--check"])
    assert left.value.code == 0 and "mmr1: 2 of 2 rows match" in capsys.readouterr().out
    words.insert(4, str(tmp_path / "shards"))
    assert cli.main([*words, "--limit", "1"]) == 0
    assert "1 rows: 1 samples in" in capsys.readouterr().out
    assert cli.main([*words, "--limit", "1"]) == 0
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "import", "mmk12", str(path), "--check"])
    assert left.value.code == 1


def test_command_names_the_neighbour_of_a_mistyped_corpus(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["data", "import", "lava_cot", "a", "b"]) == 2
    assert "no corpus 'lava_cot'; did you mean 'llava_cot'?" in capsys.readouterr().err


def test_fixture_rows_are_small():
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 300_000
    assert len(fixture_rows("mmk12")) == 2
