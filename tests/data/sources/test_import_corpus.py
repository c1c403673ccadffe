"""Imports drop and count bad rows; interrupted and parallel ones end with the same bytes; the command prints it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipeline.config import WorkConfig
from data_pipeline.encode.image_header import image_size
from data_pipeline.errors import BadSample
from data_pipeline.files import read_json
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex, rows_path
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.config import FramesConfig, ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import REPORT, ImportReport, import_corpus, read_corpus
from launch import cli
from tests.helpers.corpora import FIXTURES, fixture_rows, question_rows, write_corpus, write_jsonl
from tests.helpers.processes import wait_until

ROWS = question_rows(40)
BAD = {"id": "bad", "question": "", "answer": "1"}


def config(path: Path, **options: Any) -> ImportConfig:
    return ImportConfig(rows=RowsConfig(path=str(path)), out=str(path.parent / "shards"), **options)


# ---- bad rows


def test_bad_rows_are_dropped_and_counted(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS[:20], BAD, *ROWS[20:]])
    report = import_corpus("questions", config(path))
    assert (report.rows, report.samples, report.bad.counts) == (41, 40, {"text": 1})
    assert report.bad.cases() == (
        "  1 text, the first: row 20: text: question: wanted text, saw an empty one; drop the row"
    )
    refs = ShardIndex.load(tmp_path / "shards")
    assert [ref.id.rpartition("-")[0] for ref in refs] == [f"questions/q{n}" for n in range(40)]
    assert ImportReport.load(tmp_path / "shards" / REPORT) == report
    assert read_json(tmp_path / "shards" / "import.json")["corpus"] == "questions"


@pytest.mark.parametrize("limit", [0, 2, 0.05])
def test_too_many_bad_rows_stop_the_import(tmp_path: Path, limit: float):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, *[BAD] * 3])
    with pytest.raises(ValueError, match=rf"of 4[123] rows are bad, more than max_bad_samples={limit:g}"):
        import_corpus("questions", config(path, max_bad_samples=limit))
    assert not (tmp_path / "shards" / "index.json").exists(), "the folder is not complete"
    assert import_corpus("questions", config(path, max_bad_samples=3)).samples == 40


def test_rows_are_numbered_over_bad_ones_and_questions_of_a_lesson(tmp_path: Path):
    lessons = [fixture_rows("tqa")[0], 7, {"lessonName": "empty"}, fixture_rows("tqa")[0]]
    (tmp_path / "tqa.json").write_text(json.dumps(lessons))
    places = []
    for place, build in read_corpus("tqa", RowsConfig(path=str(tmp_path / "tqa.json"), images=str(FIXTURES))):
        try:
            places.append((place, build().metadata["row"]))
        except BadSample as error:
            places.append((place, error.reason))
    assert places == [
        ("row 0", 0),
        ("row 1", 1),
        ("row 2", "schema"),
        ("row 3", "schema"),
        ("row 4", 4),
        ("row 5", 5),
    ]


def test_source_without_any_sample_is_an_error_that_leaves_nothing(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(ValueError, match="no row of"):
        import_corpus("questions", config(path))
    write_jsonl(path, ROWS)
    with pytest.raises(ValueError, match=r"no row of(.|\n)*40 schema, the first: row 0"):
        import_corpus("llava_cot", config(path, max_bad_samples=100))
    assert import_corpus("questions", config(path)).samples == 40, "the folder can be used for another corpus"


def test_missing_image_folder_is_an_error(tmp_path: Path):
    rows = RowsConfig(path=str(write_jsonl(tmp_path / "a.jsonl", ROWS)), images=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"rows\.images=.* is not a folder"):
        import_corpus("questions", ImportConfig(rows=rows, out=str(tmp_path / "shards")))


@pytest.mark.parametrize(("field", "value"), [("limit", -1), ("max_bad_samples", -0.1)])
def test_wrong_options_are_named(field: str, value: float):
    with pytest.raises(ValueError, match=rf"{field}=.* must be at least"):
        config(Path("a.jsonl"), **{field: value})


# ---- folders


def test_finished_import_is_not_repeated(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    first = import_corpus("questions", config(path, limit=5))
    before = (tmp_path / "shards" / "index.json").stat().st_mtime_ns
    assert import_corpus("questions", config(path, limit=5)) == first
    assert (tmp_path / "shards" / "index.json").stat().st_mtime_ns == before
    assert len(ShardIndex.load(tmp_path / "shards")) == first.samples == 5
    with pytest.raises(ValueError, match="made with other settings: limit was 5, is 0"):
        import_corpus("questions", config(path))


def test_foreign_shards_are_not_taken_for_an_import(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    import_corpus("questions", config(path))
    write_shards(read_shards(tmp_path / "shards"), tmp_path / "mine")
    with pytest.raises(ValueError, match=r"is not empty and has no import\.json"):
        import_corpus("questions", replace(config(path), out=str(tmp_path / "mine")))


def test_our_own_shards_can_be_imported(tmp_path: Path):
    rows = RowsConfig(path=str(write_corpus("messages", tmp_path)), images=str(FIXTURES))
    import_corpus("messages", ImportConfig(rows=rows, out=str(tmp_path / "a")))
    import_corpus(
        "messages", ImportConfig(rows=RowsConfig(path=str(tmp_path / "a")), out=str(tmp_path / "b"))
    )
    for one, two in zip(read_shards(tmp_path / "a"), read_shards(tmp_path / "b"), strict=True):
        assert (one.messages, one.images, one.answer) == (two.messages, two.images, two.answer)


# ---- several files: a part each


def write_sources(folder: Path, num_files: int, num_rows: int) -> Path:
    """A folder of JSON lines; each file has one broken line."""
    folder.mkdir()
    for file in range(num_files):
        rows = [
            {"id": f"{file}-{n}", "question": f"What is {n} + {file}?" * 20, "answer": str(n + file)}
            for n in range(num_rows)
        ]
        lines = [json.dumps(row) for row in rows]
        lines[file] = '{"question": "broken"'
        (folder / f"train-{file:05d}.jsonl").write_text("\n".join(lines))
    return folder


def test_parts_of_another_import_are_not_continued(tmp_path: Path):
    source = write_sources(tmp_path / "source", 3, 30)
    wanted = config(source, max_bad_samples=1)
    with pytest.raises(ValueError, match="3 of 90 rows are bad"):
        import_corpus("questions", wanted)
    with pytest.raises(ValueError, match="system_prompt was True, is False"):
        import_corpus("questions", replace(wanted, rows=replace(wanted.rows, system_prompt=False)))
    (source / "train-00001.jsonl").write_text("")
    with pytest.raises(ValueError, match="made with other settings: files was"):
        import_corpus("questions", replace(wanted, max_bad_samples=9))


def test_limit_counts_over_all_files(tmp_path: Path):
    source = write_sources(tmp_path / "source", 4, 10)
    report = import_corpus(
        "questions", config(source, limit=15, max_bad_samples=9, work=WorkConfig(workers=3))
    )
    assert (report.samples, report.rows) == (15, 17)
    files = [sample.metadata["file"] for sample in read_shards(tmp_path / "shards")]
    assert files == ["train-00000.jsonl"] * 9 + ["train-00001.jsonl"] * 6


IMPORT = """
import sys
from data_pipeline.config import WorkConfig
from data_pipeline.sources.config import FramesConfig, ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import import_corpus

path, out, workers = sys.argv[1:]
config = ImportConfig(rows=RowsConfig(path=path), out=out, work=WorkConfig(workers=int(workers)))
report = import_corpus("questions", config)
print(report.rows, report.samples, report.bad.cases(), sep="\\n")
"""
PRINTED = (
    "24000\n23994\n  6 unreadable, the first: train-00000.jsonl, row 0: unreadable: line 1 is not JSON: "
)


def start_import(source: Path, out: Path, workers: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", IMPORT, str(source), str(out), str(workers)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for_finished_part(out: Path, running: subprocess.Popen) -> Path:
    """Returns the first shard of a part that is finished while others are not."""
    wait_until(lambda: any(out.glob("part-*.json")) or running.poll() is not None)
    assert running.poll() is None and not (out / "index.json").exists(), "the import is not finished"
    done = min(out.glob("part-*.json"))
    return out / f"shard-{done.stem.removeprefix('part-')}-0000.tar"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("source") / "rows", 6, 4_000)


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, bytes]:
    """The files of an import by one worker that is not interrupted."""
    done = start_import(source, source.parent / "whole", 1)
    assert done.communicate(timeout=120)[0].startswith(PRINTED)
    return contents(source.parent / "whole")


def test_killed_import_continues_and_ends_with_the_same_bytes(
    tmp_path: Path, source: Path, whole: dict[str, bytes]
):
    out = tmp_path / "out"
    killed = start_import(source, out, 2)
    first = wait_for_finished_part(out, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    stamp = first.stat().st_mtime_ns
    printed = start_import(source, out, 3).communicate(timeout=120)[0]
    assert printed.startswith(PRINTED), "counts of all parts are added"
    assert first.stat().st_mtime_ns == stamp, "finished parts are not repeated"
    assert contents(out) == whole
    index = ShardIndex.load(out)
    assert len(index.shards) == 6 and all(rows_path(out / s.file).exists() for s in index.shards)
    sample = next(iter(read_shards(out)))
    assert sample.metadata["file"] == "train-00000.jsonl" and sample.metadata["row"] == 1


def test_killed_worker_is_replaced_and_the_bytes_are_the_same(
    tmp_path: Path, source: Path, whole: dict[str, bytes]
):
    out = tmp_path / "out"
    running = start_import(source, out, 2)
    wait_for_finished_part(out, running)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    assert running.communicate(timeout=120)[0].startswith(PRINTED) and running.returncode == 0
    assert contents(out) == whole


# ---- the command


def test_pixel_cap_scales_down_and_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number, side in enumerate((100, 300, 500)):
        Image.new("RGB", (side, side), "red").save(tmp_path / f"{number}.png")
    rows = [{"question": f"What is {n}?", "answer": n, "image": f"{n}.png"} for n in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    report = import_corpus("questions", config(path, writer=ShardConfig(max_pixels=50_000)))
    assert report.scaled == 2
    images = [image_size(sample.images[0]) for sample in read_shards(tmp_path / "shards")]
    assert images == [(100, 100), (196, 196), (196, 196)]
    words = ["data", "import", "questions", str(path), str(tmp_path / "again")]
    assert cli.main([*words, "--writer.max_pixels", "50000"]) == 0
    assert "2 images were larger than writer.max_pixels=50000 and are scaled down" in capsys.readouterr().out


def test_command_imports_and_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_corpus("mmr1", tmp_path)
    words = ["data", "import", "mmr1", str(path), str(tmp_path / "shards"), "--rows.images", str(FIXTURES)]
    assert cli.main([*words, "--limit", "1"]) == 0
    assert "1 rows: 1 samples in" in capsys.readouterr().out
    assert cli.main([*words, "--limit", "1"]) == 0
    assert "complete already" in capsys.readouterr().out


def test_command_names_the_nearest_corpus(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["data", "import", "lava_cot", "a", "b"]) == 2
    assert "no corpus 'lava_cot'; did you mean 'llava_cot'?" in capsys.readouterr().err


def test_folders_made_before_videos_continue(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    import_corpus("questions", config(path))
    manifest = tmp_path / "shards" / "import.json"
    assert "frames" not in read_json(manifest)
    rows = RowsConfig(path=str(path), frames=FramesConfig(fps=1.0))
    with pytest.raises(ValueError, match="frames was None, is"):
        import_corpus("questions", replace(config(path), rows=rows))
