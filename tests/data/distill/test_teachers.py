"""Several teachers on servers of their own: what each is asked, what is kept, counted and continued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.curate.curate import curate
from data_pipeline.distill.config import AssignConfig, DistillConfig, TeacherConfig
from data_pipeline.distill.distill import write_distilled
from data_pipeline.distill.responses import stats_table
from data_pipeline.distill.teachers import (
    ask_teachers,
    count_excluded,
    read_teacher_stats,
    teachers_table,
)
from data_pipeline.select.config import FilterConfig
from data_pipeline.served.config import JudgeConfig, ServerConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.sources.config import RowsConfig
from data_pipeline.verify.config import CheckerConfig
from launch.cli import main
from tests.helpers.adding_teacher import AddingTeacher, right, write_questions
from tests.helpers.flaky_proxy import free_port

NAMES = ("small", "middle", "large")


@pytest.fixture
def servers() -> Iterator[list[AddingTeacher]]:
    """Three teachers: the small one is right up to 11, the middle one up to 13 (its first responses are wrong)."""
    with ExitStack() as stack:
        found = [stack.enter_context(AddingTeacher()) for _ in NAMES]
        found[0].respond = lambda number, total: right(total if total <= 11 else 0)
        found[1].respond = lambda number, total: right(total if total <= 13 and number else 0)
        yield found


@pytest.fixture
def wanted(servers: list[AddingTeacher], tmp_path: Path) -> DistillConfig:
    """A cascade on questions whose answers are 11, 12, 13 and 14."""
    teachers = tuple(
        TeacherConfig(
            name=name,
            server=ServerConfig(base_url=server.url, concurrency=1, retries=0, unavailable_timeout=0.1),
            k=2,
            checker=CheckerConfig(workers=1),
        )
        for name, server in zip(NAMES, servers, strict=True)
    )
    return DistillConfig(
        shards=write_questions(tmp_path / "in", 10),
        out=str(tmp_path / "out"),
        teachers=teachers,
        assign=AssignConfig(way="cascade"),
    )


def totals(servers: list[AddingTeacher]) -> list[list[int]]:
    """Returns the sums that each teacher was asked for, each once."""
    return [sorted({sum(map(int, q[8:-1].split(" + "))) for q in server.questions}) for server in servers]


def learned(config: DistillConfig) -> list[str]:
    return [sample.id for sample in read_shards(write_distilled(config).folder)]


def test_cascade_asks_the_next_teacher_what_was_not_answered_right(
    wanted: DistillConfig, servers: list[AddingTeacher]
):
    stats = ask_teachers(wanted)
    assert totals(servers) == [[11, 12, 13, 14], [12, 13, 14], [14]]
    counts = {name: (s["sums"].questions, s["sums"].solved, s["sums"].kept) for name, s in stats.items()}
    assert counts == {"small": (4, 1, 2), "middle": (3, 2, 2), "large": (1, 1, 2)}
    expected = ["q0#small-0", "q0#small-1", "q1#middle-1", "q2#middle-1", "q3#large-0", "q3#large-1"]
    assert learned(wanted) == expected
    metadata = [sample.metadata for sample in read_shards(Path(wanted.out) / "shards")]
    assert [(m["teacher"], m["rollout"]) for m in metadata][2:4] == [("middle", 1)] * 2
    written = json.loads((Path(wanted.out) / "stats.json").read_text())
    assert {name: found["sums"]["solved"] for name, found in written.items()} == {
        "small": 1,
        "middle": 2,
        "large": 1,
    }


def test_cascade_continues_and_says_which_teacher_is_down(
    wanted: DistillConfig, servers: list[AddingTeacher]
):
    ask_teachers(wanted)
    asked = [len(server.questions) for server in servers]
    ask_teachers(wanted)
    assert [len(server.questions) for server in servers] == asked, "nothing is asked twice"

    down = f"http://127.0.0.1:{free_port()}/v1"
    fourth = replace(
        wanted.teachers[2], name="fourth", server=replace(wanted.teachers[2].server, base_url=down)
    )
    longer = replace(wanted, teachers=(*wanted.teachers, fourth))
    assert ask_teachers(longer)["fourth"] == {}, "a teacher without a question need not be there"

    servers[2].respond = lambda number, total: right(0)
    other = replace(longer, out=f"{wanted.out}-2")
    with pytest.raises(ValueError, match=f"{down} was unavailable .* run the same command again"):
        ask_teachers(other)
    with AddingTeacher() as server:
        other = replace(
            other,
            teachers=(
                *wanted.teachers,
                replace(fourth, server=replace(fourth.server, base_url=server.url)),
            ),
        )
        ask_teachers(other)
        assert totals([*servers, server]) == [[11, 12, 13, 14], [12, 13, 14], [14], [14]]
    assert [len(server.questions) for server in servers] == [2 * count for count in asked]


def test_more_responses_of_an_early_teacher_leave_fewer_questions_to_the_next(
    wanted: DistillConfig, servers: list[AddingTeacher]
):
    """The third response of the small teacher is right; what the others said stays."""
    ask_teachers(wanted)
    asked = [len(server.questions) for server in servers]
    servers[0].respond = lambda number, total: right(total if number == 2 else 0)
    more = replace(wanted, teachers=(replace(wanted.teachers[0], k=3), *wanted.teachers[1:]))
    stats = ask_teachers(more)
    assert [len(server.questions) for server in servers] == [asked[0] + 4, *asked[1:]]
    assert stats["small"]["sums"].solved == 4 and stats["large"]["sums"].kept == 2
    ids = learned(more)
    assert {"q1#small-2", "q1#middle-1", "q3#large-1"} <= set(ids) and len(ids) == 2 + 4 + 2 + 2


def test_every_teacher_is_asked_every_question_and_their_responses_alternate(
    wanted: DistillConfig, servers: list[AddingTeacher]
):
    everyone = replace(wanted, assign=AssignConfig(), per_question=3)
    ask_teachers(everyone)
    assert totals(servers) == [[11, 12, 13, 14]] * 3
    expected = ["q0#small-0", "q0#large-0", "q0#small-1"]
    assert learned(everyone)[:3] == expected, "the first response of each comes before the second"


def test_shares_and_pass_rates_choose_one_teacher_a_question(
    wanted: DistillConfig, servers: list[AddingTeacher], tmp_path: Path
):
    shared = replace(wanted, assign=AssignConfig(way="shares", shares=(1.0, 0.0, 1.0)))
    stats = ask_teachers(shared)
    assert sum(found["sums"].questions for found in stats.values() if found) == 4 and not stats["middle"]

    scores = tmp_path / "scores.jsonl"
    rates = {"q0": 1.0, "q1": 0.5, "q2": 0.0}
    scores.write_text("".join(json.dumps({"id": id, "pass_rate": rate}) + "\n" for id, rate in rates.items()))
    by_rate = replace(
        wanted,
        out=f"{wanted.out}-2",
        assign=AssignConfig(way="by_pass_rate", thresholds=(1.0, 0.5)),
        scores=(str(scores),),
    )
    before = [len(server.questions) for server in servers]
    ask_teachers(by_rate)
    for server, count in zip(servers, before, strict=True):
        del server.questions[:count]
    assert totals(servers) == [[11], [12], [13]], "q3 has no pass rate"
    assert count_excluded(by_rate) == {"unscored": 1} and count_excluded(wanted) == {}
    hard = replace(by_rate, assign=AssignConfig(max_pass_rate=0.0))
    assert count_excluded(hard) == {"too_easy": 2, "unscored": 1}
    assert teachers_table(hard, {name: {} for name in NAMES}, count_excluded(hard)).endswith(
        "\nnot asked: too_easy 2, unscored 1"
    )
    scores.write_text('{"id": "other", "pass_rate": 0.5}\n')
    with pytest.raises(
        ValueError, match=r"no question in .*, such as 'q0', has a pass rate: .*scores\.jsonl holds"
    ):
        ask_teachers(by_rate)
    with pytest.raises(ValueError, match="way=by_pass_rate .* needs pass rates: give the scores.jsonl"):
        ask_teachers(replace(by_rate, scores=()))


def test_likeliest_answer_is_kept(wanted: DistillConfig, servers: list[AddingTeacher]):
    servers[2].logprob = lambda number: [-2.0, -0.25, -1.0][number % 3]
    best = replace(
        wanted,
        teachers=(replace(wanted.teachers[2], k=3),),
        assign=AssignConfig(),
        per_question=2,
        keep="likeliest_answer",
    )
    ask_teachers(best)
    assert learned(best) == [f"q{n}#large-{rollout}" for n in range(4) for rollout in (1, 2)]
    sample = next(read_shards(Path(best.out) / "shards"))
    assert (sample.metadata["answer_logprob"], sample.metadata["mean_logprob"]) == (-0.25, -0.25)
    without = replace(best, out=f"{best.out}-2", keep="first")
    ask_teachers(replace(without, teachers=(replace(best.teachers[0], k=1),)))
    with pytest.raises(ValueError, match=r"other settings: logprobs was None, is True"):
        ask_teachers(replace(without, keep="likeliest_answer"))
    without = replace(best, out=f"{best.out}-3", keep="first")
    ask_teachers(without)
    assert learned(without)[0] == "q0#large-0" and learned(best)[0] == "q0#large-1"
    with pytest.raises(
        ValueError, match=r"keep=likeliest needs the log-probabilities of all 3 .* in another folder"
    ):
        write_distilled(replace(without, keep="likeliest"))


def test_responses_of_one_teacher_without_a_name_are_not_mixed_with_others(wanted: DistillConfig):
    one = replace(wanted, teachers=(replace(wanted.teachers[0], name=""),), assign=AssignConfig())
    ask_teachers(one)
    with pytest.raises(
        ValueError, match=r"holds the responses of a teacher without a name; move asked\.json"
    ):
        ask_teachers(wanted)
    ask_teachers(two := replace(wanted, out=f"{wanted.out}-2"))
    with pytest.raises(ValueError, match=r"is not empty and has no asked\.json"):
        ask_teachers(replace(one, out=two.out))


def test_table_has_tokens_and_cost_by_teacher(wanted: DistillConfig):
    priced = replace(wanted.teachers[2], price_in=1_000_000.0, price_out=2_000_000.0)
    config = replace(wanted, teachers=(*wanted.teachers[:2], priced))
    ask_teachers(config)
    lines = teachers_table(config, read_teacher_stats(config)).splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["teacher", *NAMES, "all"]
    tokens_in, tokens_out = 2 * len("What is 13 + 1?"), 2 * len(right(14))
    assert lines[3].split()[7:9] == [str(tokens_in), str(tokens_out)]
    assert lines[3].split()[-1] == lines[4].split()[-1] == f"{tokens_in + 2 * tokens_out:.2f}"


def test_curation_counts_by_teacher_what_a_student_left(
    wanted: DistillConfig, servers: list[AddingTeacher], teacher: AddingTeacher, tmp_path: Path
):
    """The student is right about 11; the cascade is asked the rest."""
    teacher.respond = lambda number, total: right(total if total == 11 else 0)
    source = SourceConfig(
        name="sums", corpus=SHARDS, rows=RowsConfig(path=wanted.shards), responses="distill"
    )
    recipe = CurateConfig(
        out=str(tmp_path / "curated"),
        sources=(source,),
        difficulty=True,
        student=replace(
            wanted.teachers[0],
            name="",
            server=replace(wanted.teachers[0].server, base_url=teacher.url),
            price_in=1.0,
        ),
        teachers=(*wanted.teachers[:2], replace(wanted.teachers[2], price_out=1_000_000.0)),
        assign=AssignConfig(way="cascade", max_pass_rate=0.0),
        per_question=1,
        keep="likeliest_answer",
        responses=FilterConfig(max_pass_rate=0.5),
    )
    funnel = curate(recipe)
    assert totals(servers) == [[12, 13, 14], [12, 13, 14], [14]]
    found = {row.teacher: row for row in funnel.teachers()}
    assert {name: (row.questions, row.solved, row.right) for name, row in found.items()} == {
        "student": (4, 1, 2),
        "small": (3, 0, 0),
        "middle": (3, 2, 2),
        "large": (1, 1, 2),
    }
    assert found["large"].cost == found["large"].response_len == 2 * len(right(14))
    assert found["student"].cost == 4 * 2 * len("What is 10 + 1?") / 1e6
    assert funnel.dropped()["distilled"] == {"too_easy": 1}
    assert funnel.totals == {
        "raw": 4,
        "filtered": 4,
        "scored": 4,
        "distilled": 14,
        "verified": 4,
        "selected": 3,
        "mixed": 3,
    }
    assert funnel.table().splitlines()[-1].split()[:3] == ["large", "1", "1"]


def test_command_takes_as_many_teachers_as_its_words_number(
    wanted: DistillConfig, servers: list[AddingTeacher], capsys: pytest.CaptureFixture[str]
):
    words = f"--assign.way cascade --teachers.0.server.base_url {servers[0].url} --teachers.0.k 1"
    more = f"--teachers.1.server.base_url {servers[2].url} --teachers.1.name large --teachers.1.k 1"
    assert main(["data", "distill", wanted.shards, wanted.out, *words.split(), *more.split()]) == 0
    assert totals(servers) == [[11, 12, 13, 14], [], [12, 13, 14]]
    assert "4 samples in" in capsys.readouterr().out
    assert sorted(path.name for path in (Path(wanted.out) / "teachers").iterdir()) == ["0", "large"]


def test_tokens_of_a_judge_are_counted_beside_those_of_its_teacher(
    wanted: DistillConfig, servers: list[AddingTeacher], teacher: AddingTeacher
):
    """The small teacher is wrong about three of four, twice each: the second time as judged before."""
    teacher.respond = lambda number, total: "Analysis: no.\nJudgment: Different"
    judged = replace(wanted.teachers[0], judge=JudgeConfig(base_url=teacher.url))
    config = replace(wanted, teachers=(judged,), assign=AssignConfig())
    found = ask_teachers(config)["small"]["sums"]
    assert (found.kept, len(teacher.questions)) == (2, 3)
    assert found.judge_prompt_len == sum(map(len, teacher.questions))
    assert found.judge_response_len == 3 * len("Analysis: no.\nJudgment: Different")
    assert stats_table({"sums": found}).split()[9:11] == ["judge_prompt_len", "judge_response_len"]
    unjudged = replace(config, teachers=(wanted.teachers[0],))
    assert ask_teachers(unjudged)["small"]["sums"].judge_prompt_len == 0, (
        "none for the verdicts that now count"
    )
