"""Folders of responses: which settings they belong to, what is counted, and what further runs ask for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.distill.config import DistillConfig, TeacherConfig
from data_pipeline.distill.distill import write_distilled
from data_pipeline.distill.responses import ResponseStats, read_shard_responses, responses_path, stats_table
from data_pipeline.distill.scoring import write_scores
from data_pipeline.distill.teachers import ask_teachers
from data_pipeline.loader.config import MixConfig
from data_pipeline.loader.mixture import mix
from data_pipeline.select.config import SelectConfig
from data_pipeline.select.select import select
from data_pipeline.served.config import ServerConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.verify.config import CheckerConfig
from launch.cli import main
from tests.helpers.adding_teacher import AddingTeacher, question, right, write_questions


def config(teacher: AddingTeacher, shards: str, out: Path, **options: object) -> DistillConfig:
    asked = TeacherConfig(
        server=ServerConfig(base_url=teacher.url, concurrency=4, retries=0),
        checker=CheckerConfig(workers=1),
        **{"k": 2} | options,  # pyright: ignore
    )
    return DistillConfig(shards=shards, out=str(out), teachers=(asked,))


def asking(config: DistillConfig, **changes: object) -> DistillConfig:
    """Returns the config with other fields of the teacher."""
    return replace(config, teachers=(replace(config.teachers[0], **changes),))  # pyright: ignore


def ask(config: DistillConfig) -> dict[str, ResponseStats]:
    """Returns the counts by source of the one teacher."""
    (stats,) = ask_teachers(config).values()
    return stats


def model(name: str, config: DistillConfig) -> ServerConfig:
    return replace(config.teachers[0].server, model=name)


def learned(folder: str | Path) -> list[tuple[str, str]]:
    return [(sample.id, sample.messages[-1].content) for sample in read_shards(folder)]


def test_folder_refuses_other_settings_even_when_complete(teacher: AddingTeacher, tmp_path: Path):
    first, other = write_questions(tmp_path / "a", 10), write_questions(tmp_path / "b", 20)
    wanted = config(teacher, first, tmp_path / "out")
    ask(wanted)
    write_distilled(wanted)
    shutil.rmtree(tmp_path / "out/shards")
    changed = {
        "shards": replace(wanted, shards=other),
        "temperature": asking(wanted, temperature=0.5),
        "system_prompt": asking(wanted, system_prompt="Be brief."),
        "model": asking(wanted, server=model("another", wanted)),
        "seed": asking(wanted, seed=7),
        "extra_body": asking(wanted, extra_body='{"top_k": 1}'),
        "logprobs": replace(wanted, keep="likeliest_answer"),
    }
    for name, different in changed.items():
        with pytest.raises(ValueError, match=f"made with other settings: {name} was"):
            ask(different)
    named = asking(wanted, server=model("adder", wanted))
    assert ask(named), "the name that the server gave is the same model"
    asked = len(teacher.questions)
    assert ask(wanted) and len(teacher.questions) == asked == 8
    (tmp_path / "out/asked.json").unlink()  # without it, each shard still knows its questions
    for attempt in (
        lambda: ask(replace(wanted, shards=other)),
        lambda: list(read_shard_responses(wanted.out, ShardIndex.load(other), 0)),
        lambda: write_distilled(replace(wanted, shards=other)),
    ):
        with pytest.raises(ValueError, match="is of other questions than"):
            attempt()


def test_folder_with_foreign_files_is_refused(teacher: AddingTeacher, tmp_path: Path):
    wanted = config(teacher, write_questions(tmp_path / "a", 10), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty and has no asked\.json"):
        ask(wanted)
    assert not teacher.questions


def test_samples_with_equal_ids_are_not_asked(teacher: AddingTeacher, tmp_path: Path):
    write_shards([question("same", 1, 1), question("same", 2, 2)], tmp_path / "in")
    with pytest.raises(ValueError, match=r"shard-.*tar holds several .* 'same'.*omr data validate"):
        ask(config(teacher, str(tmp_path / "in"), tmp_path / "out"))
    assert not teacher.questions


def test_several_workers_give_the_same_responses(teacher: AddingTeacher, tmp_path: Path):
    shards = write_questions(tmp_path / "a", 10)
    one, two = (config(teacher, shards, tmp_path / name) for name in ("one", "two"))
    ask(one)
    stats = ask(replace(two, work=replace(two.work, workers=2)))
    assert stats["sums"].kept == 8 and len(teacher.questions) == 16
    index = ShardIndex.load(shards)
    both = [[r for n in range(2) for r in read_shard_responses(c.out, index, n)] for c in (one, two)]
    assert [replace(r, seconds=0.0) for r in both[0]] == [replace(r, seconds=0.0) for r in both[1]]


def test_mixture_is_distilled_and_scored(teacher: AddingTeacher, tmp_path: Path):
    """The sources of a mixture name their shards alike."""
    sources = (
        write_questions(tmp_path / "in/one", 10, "one"),
        write_questions(tmp_path / "in/two", 20, "two"),
    )
    mix(MixConfig(shards=sources, out=str(tmp_path / "mixed")))
    wanted = config(teacher, str(tmp_path / "mixed"), tmp_path / "out", k=1)
    stats = ask(wanted)
    assert {name: (found.asked, found.kept) for name, found in stats.items()} == {
        "one": (4, 4),
        "two": (4, 4),
    }
    write_distilled(wanted)
    expected = [(f"q{n}#0", right(start + n + 1)) for start in (10, 20) for n in range(4)]
    assert learned(tmp_path / "out/shards") == expected
    assert [responses_path(wanted.out, n).name for n in range(4)] == [
        path.name for path in sorted((tmp_path / "out/responses").glob("*.jsonl"))
    ]
    assert write_scores(wanted.asks[0]).read_text().count('"pass_rate": 1.0') == 8


def test_more_responses_replace_the_samples_of_fewer(
    teacher: AddingTeacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shards, out = write_questions(tmp_path / "a", 10), tmp_path / "out"
    common = f"""--teachers.0.server.base_url {teacher.url} --teachers.0.server.retries 0 --teachers.0.checker.workers 1
        --teachers.0.max_failures 9"""

    def run(options: str) -> tuple[int, str]:
        code = main(["data", "distill", shards, str(out), *common.split(), *options.split()])
        return code, capsys.readouterr().out

    teacher.respond = lambda number, total: right(total) if number % 2 else 400
    for options, count, asked in (
        ("--teachers.0.k 2", 4, 8),
        ("--teachers.0.k 4", 8, 16),
        ("--teachers.0.k 4 --per_question 1", 4, 16),
        ("--teachers.0.k 4 --teachers.0.checker.mode released", 8, 16),
    ):
        code, said = run(options)
        assert (code, len(learned(out / "shards")), len(teacher.questions)) == (0, count, asked)
        assert "refused" in said and f"{count} samples in" in said
    teacher.respond = lambda number, total: right(total)
    assert run("--teachers.0.k 4 --teachers.0.checker.mode released --teachers.0.ask_failed_again")[0] == 0
    assert len(learned(out / "shards")) == 16
    names = ["asked.json", "config.json", "responses", "shards", "stats.json"]
    assert sorted(path.name for path in out.iterdir()) == names

    shutil.rmtree(
        out / "shards"
    )  # the output of another command stays, and the table is printed all the same
    select(SelectConfig(shards=shards, out=str(out / "shards")))
    before = learned(out / "shards")
    code, said = run("--teachers.0.k 4")
    assert code == 2 and "response_len" in said and learned(out / "shards") == before


def test_failures_and_rejections_are_counted_apart(teacher: AddingTeacher, tmp_path: Path):
    said = [right(0), 400, "no idea", "<think>.</think><answer>0</answer>"]
    teacher.respond = lambda number, total: right(total) if number > 3 else said[number]
    wanted = config(teacher, write_questions(tmp_path / "a", 10), tmp_path / "out", k=6, max_failures=9)
    stats = ask(wanted)
    found = stats["sums"]
    assert found.failed == {"refused": 4} and found.rejected == {"wrong": 8, "no_think": 4}
    assert found.asked == found.received + sum(found.failed.values()) == 24
    assert found.received == found.kept + sum(found.rejected.values())
    assert stats_table(stats).endswith("failed: refused 4\nnot kept: wrong 8, no_think 4")


def test_failures_above_the_limit_raise_in_every_run_until_asked_again(
    teacher: AddingTeacher, tmp_path: Path
):
    """The share is judged over the folder, so that running the same command again does not hide it."""
    teacher.respond = lambda number, total: right(total) if number else 400
    wanted = config(teacher, write_questions(tmp_path / "a", 10), tmp_path / "out", max_failures=0.25)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"(?s)4 of 8 .* teacher\.max_failures=0\.25.*refused.*'q0'.*demand"
        ):
            ask(wanted)
        assert len(teacher.questions) == 8
    assert ask(asking(wanted, max_failures=4))["sums"].kept == 4
    assert ask(asking(wanted, ask_failed_again=True))["sums"].kept == 8
