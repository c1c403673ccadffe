"""Folders of answers: what belongs to what, from run to run, asked of a small teacher on loopback that can add."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.curate.curate import curate
from data_pipeline.distill.answers import ShardSummary, answers_path, read_answers
from data_pipeline.distill.config import DistillConfig, ScoreConfig, TeacherConfig
from data_pipeline.distill.distill import answers_digest, distill, finish_distill, yields_table
from data_pipeline.distill.scoring import finish_scores, read_scores, score
from data_pipeline.loader.config import MixConfig
from data_pipeline.loader.mixture import mix
from data_pipeline.select.config import FilterConfig, SelectConfig
from data_pipeline.select.select import select
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.types import Message, Sample
from launch.cli import main


class Teacher(ThreadingHTTPServer):
    """Adds the two numbers of a question; `say` may make another text of (number of the request, sum), or a status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.questions: list[str] = []
        self.say: Callable[[int, int], str | int] = lambda number, total: right(total)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Teacher

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "adder", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.server.questions.append(text)
        said = self.server.say(self.server.questions.count(text) - 1, sum(map(int, re.findall(r"\d+", text))))
        if isinstance(said, int):
            self._send(said, {"error": {"message": "on demand"}})
        else:
            self._send(200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with Teacher() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def right(total: int) -> str:
    return f"<think>I add.</think><answer>{total}</answer>"


def question(id: str, one: int, other: int, source: str = "sums") -> Sample:
    turns = (
        Message(role="user", content=f"What is {one} + {other}?"),
        Message(role="assistant", content="..."),
    )
    return Sample(id=id, source=source, messages=turns, images=(), answer=str(one + other), metadata={})


def write(folder: Path, start: int, source: str = "sums") -> str:
    """Four questions of the same ids wherever they start, in two shards."""
    samples = [question(f"q{n}", start + n, 1, source) for n in range(4)]
    write_shards(samples, folder, ShardConfig(samples_per_shard=2))
    return str(folder)


def config(teacher: Teacher, shards: str, out: Path, **options: object) -> DistillConfig:
    common = {"k": 2, "checkers": 1, "concurrency": 4, "retries": 0}
    return DistillConfig(base_url=teacher.url, shards=shards, out=str(out), **common | options)  # pyright: ignore


def learned(folder: str | Path) -> list[tuple[str, str]]:
    return [(sample.id, sample.messages[-1].content) for sample in read_shards(folder)]


def test_a_folder_holds_answers_to_one_thing_also_when_it_is_complete(teacher: Teacher, tmp_path: Path):
    first, other = write(tmp_path / "a", 10), write(tmp_path / "b", 20)
    wanted = config(teacher, first, tmp_path / "out")
    distill(wanted)
    finish_distill(wanted)
    shutil.rmtree(tmp_path / "out/shards")
    changes = {
        "shards": other,
        "temperature": 0.5,
        "system_prompt": "Be brief.",
        "model": "another",
        "seed": 7,
        "extra_body": '{"top_k": 1}',
    }
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"answers to something else: {name} was"):
            distill(replace(wanted, **{name: value}))
    assert distill(replace(wanted, model="adder")), "the name that the server gave"
    asked = len(teacher.questions)
    assert distill(wanted) and len(teacher.questions) == asked == 8
    index = ShardIndex.load(other)
    (tmp_path / "out/asked.json").unlink()  # without it, each shard still knows what it answers
    for attempt in (
        lambda: distill(replace(wanted, shards=other)),
        lambda: list(read_answers(wanted.out, index, 0)),
        lambda: finish_distill(replace(wanted, shards=other)),
    ):
        with pytest.raises(ValueError, match="is of other questions than"):
            attempt()


def test_one_kind_of_score_does_not_empty_another(teacher: Teacher, tmp_path: Path):
    shards = write(tmp_path / "a", 10)
    wanted = ScoreConfig(base_url=teacher.url, shards=shards, out=str(tmp_path / "out"), k=2, checkers=1)
    score(wanted)
    before = finish_scores(wanted).read_bytes()
    assert main(["data", "score", shards, wanted.out, "--kind", "perplexity", "--checkers", "1"]) == 2
    assert finish_scores(wanted).read_bytes() == before and before.count(b"1.0") == 4


def test_samples_that_share_an_id_are_not_asked(teacher: Teacher, tmp_path: Path):
    write_shards([question("same", 1, 1), question("same", 2, 2)], tmp_path / "in")
    with pytest.raises(ValueError, match=r"shard-.*tar holds several .* 'same'.*omr data validate"):
        distill(config(teacher, str(tmp_path / "in"), tmp_path / "out"))
    assert not teacher.questions


def test_a_mixture_is_distilled_and_scored(teacher: Teacher, tmp_path: Path):
    """Its sources name their shards alike."""
    sources = (write(tmp_path / "in/one", 10, "one"), write(tmp_path / "in/two", 20, "two"))
    mix(MixConfig(sources=sources, out=str(tmp_path / "mixed")))
    wanted = config(teacher, str(tmp_path / "mixed"), tmp_path / "out", k=1)
    yields = distill(wanted)
    assert {name: (found.asked, found.kept) for name, found in yields.items()} == {
        "one": (4, 4),
        "two": (4, 4),
    }
    finish_distill(wanted)
    expected = [(f"q{n}#0", right(start + n + 1)) for start in (10, 20) for n in range(4)]
    assert learned(tmp_path / "out/shards") == expected
    assert [answers_path(wanted.out, n).name for n in range(4)] == [
        path.name for path in sorted((tmp_path / "out/answers").glob("*.jsonl"))
    ]
    rated = ScoreConfig(
        base_url=teacher.url, shards=wanted.shards, out=str(tmp_path / "rated"), k=1, checkers=1
    )
    score(rated)
    assert finish_scores(rated).read_text().count('"pass_rate": 1.0') == 8


def test_more_answers_replace_what_fewer_gave(
    teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shards, out = write(tmp_path / "a", 10), tmp_path / "out"

    def run(*options: str) -> tuple[int, str]:
        common = ["--base_url", teacher.url, "--checkers", "1", "--retries", "0", "--max_bad_samples", "9"]
        code = main(["data", "distill", shards, str(out), *common, *options])
        return code, capsys.readouterr().out

    teacher.say = lambda number, total: right(total) if number % 2 else 400
    for options, count, asked in (
        (["--k", "2"], 4, 8),
        (["--k", "4"], 8, 16),
        (["--k", "4", "--per_question", "1"], 4, 16),
        (["--k", "4", "--mode", "released"], 8, 16),
    ):
        code, said = run(*options)
        assert (code, len(learned(out / "shards")), len(teacher.questions)) == (0, count, asked)
        assert "refused" in said and f"{count} samples in" in said
    teacher.say = lambda number, total: right(total)
    assert run("--k", "4", "--mode", "released", "--ask_failed_again")[0] == 0
    assert len(learned(out / "shards")) == 16
    assert sorted(path.name for path in out.iterdir()) == ["answers", "asked.json", "shards", "yields.json"]

    shutil.rmtree(out / "shards")  # what another command made stays, and the table is printed all the same
    select(SelectConfig(source=shards, out=str(out / "shards")))
    before = learned(out / "shards")
    code, said = run("--k", "4")
    assert code == 2 and "tokens out" in said and learned(out / "shards") == before


def test_failures_and_rejections_are_counted_apart(teacher: Teacher, tmp_path: Path):
    answers = [right(0), 400, "no idea", "<think>.</think><answer>0</answer>"]
    teacher.say = lambda number, total: right(total) if number > 3 else answers[number]
    wanted = config(teacher, write(tmp_path / "a", 10), tmp_path / "out", k=6, max_bad_samples=9)
    yields = distill(wanted)
    found = yields["sums"]
    assert found.failed == {"refused": 4} and found.reasons == {"wrong": 8, "no_think": 4}
    assert found.asked == found.answered + sum(found.failed.values()) == 24
    assert found.answered == found.kept + sum(found.reasons.values())
    assert yields_table(yields).endswith("not answered: refused 4\nnot kept: wrong 8, no_think 4")


def test_questions_without_a_score_are_dropped(teacher: Teacher, tmp_path: Path):
    shards = write(tmp_path / "a", 10)
    teacher.say = lambda number, total: 400 if total == 12 else right(total)
    rated = ScoreConfig(
        base_url=teacher.url, shards=shards, out=str(tmp_path / "rated"), k=2, checkers=1, max_bad_samples=9
    )
    score(rated)
    path = finish_scores(rated)
    assert sorted(read_scores(path)) == ["q0", "q2", "q3"]
    wanted = SelectConfig(
        source=shards,
        out=str(tmp_path / "kept"),
        scores=(str(path),),
        filters=FilterConfig(min_pass_rate=0.5),
    )
    report = select(wanted)
    assert (report.kept, report.dropped) == (3, {"unscored": 1})
    with pytest.raises(ValueError, match="pass_rate=None; this filter needs a number"):
        select(replace(wanted, out=str(tmp_path / "never"), scores=()))


def test_a_curation_counts_what_the_teacher_and_the_student_left_out(teacher: Teacher, tmp_path: Path):
    shards = write(tmp_path / "a", 10)

    def say(number: int, total: int) -> str | int:
        """The teacher asks first, twice; then the student."""
        if number < 2:
            return [right(total), 400 if total == 11 else right(0)][number]
        return 400 if total in (13, 14) else right(total)  # all questions of the second shard

    teacher.say = say
    common = {"base_url": teacher.url, "k": 2, "checkers": 1, "retries": 0, "max_bad_samples": 9.0}
    recipe = CurateConfig(
        out=str(tmp_path / "out"),
        sources=(SourceConfig(name="sums", corpus=SHARDS, path=shards, answers="distill"),),
        teacher=TeacherConfig(**common),  # pyright: ignore
        student=TeacherConfig(**common, seed=7),  # pyright: ignore
        difficulty=True,
        responses=FilterConfig(min_pass_rate=0.5),
    )
    rows = {row.stage: row for row in curate(recipe).rows}
    assert (rows["distilled"].count, rows["distilled"].dropped) == (7, {"refused": 1})
    assert (rows["verified"].count, rows["verified"].dropped) == (4, {"wrong": 3})
    index = ShardIndex.load(tmp_path / "out/standardised/sums")
    assert rows["verified"].digest == answers_digest(tmp_path / "out/distilled/sums", index)
    assert ShardSummary.load(tmp_path / "out/distilled/sums", index, 0)
    assert (rows["selected"].count, rows["selected"].dropped) == (2, {"unscored": 2})
