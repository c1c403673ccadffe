"""Distillation and pass rates against a real vLLM server of a tiny model, through a proxy that fails on demand.

The model is random, but held to the form of an answer and to four digits: one in four is right by chance.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.distill.asking import Asked, ask_shards
from data_pipeline.distill.config import DistillConfig, TeacherConfig
from data_pipeline.distill.distill import write_distilled
from data_pipeline.distill.responses import (
    ResponseStats,
    TeacherResponse,
    read_shard_responses,
    responses_path,
    stats_table,
)
from data_pipeline.distill.scoring import add_pass_rates, read_scores
from data_pipeline.distill.teachers import ask_teachers
from data_pipeline.files import to_json
from data_pipeline.served.config import JudgeConfig, ServerConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, Sample
from data_pipeline.verify.check import check_answer
from data_pipeline.verify.config import CheckerConfig, VerifyConfig
from data_pipeline.verify.score_file import score_file
from launch.cli import main
from tests.helpers.flaky_proxy import Body, FlakyProxy, free_port
from tests.helpers.model_server import ModelServer
from tests.helpers.processes import wait_until

pytestmark = pytest.mark.heavy

FORM = '{"structured_outputs": {"regex": "<think>[0-9]{1,3}</think><answer>[3-6]</answer>"}}'


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """12 questions of two sources, in 3 shards of 4; their answers are 3 to 6."""
    few = [sample for sample in digit_samples("test", 80, 0) if sample.answer in "3456"][:12]
    return [replace(sample, source=f"digits-{number % 2}") for number, sample in enumerate(few)]


@pytest.fixture(scope="module")
def shards(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions") / "shards"
    write_shards(samples, folder, ShardConfig(samples_per_shard=4))
    return folder


@pytest.fixture(scope="module")
def reference(server: ModelServer, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without failures, one request at a time."""
    out = tmp_path_factory.mktemp("reference")
    with FlakyProxy(server.url) as proxy:
        distill(config(proxy, shards, out, server={"concurrency": 1}))
    return out


def config(
    proxy: FlakyProxy, shards: Path, out: Path, *, server: dict | None = None, **options: object
) -> DistillConfig:
    found = {"base_url": proxy.url, "concurrency": 8, "unavailable_timeout": 120.0} | (server or {})
    checker = CheckerConfig(workers=1)
    teacher = {"k": 4, "max_tokens": 64, "extra_body": FORM, "checker": checker} | options
    asked = TeacherConfig(server=ServerConfig(**found), **teacher)  # pyright: ignore
    return DistillConfig(shards=str(shards), out=str(out), teachers=(asked,))


def asking(config: DistillConfig, **changes: object) -> DistillConfig:
    """Returns the config with other fields of the teacher."""
    return replace(config, teachers=(replace(config.teachers[0], **changes),))  # pyright: ignore


def ask(config: DistillConfig) -> dict[str, ResponseStats]:
    (stats,) = ask_teachers(config).values()
    return stats


def distill(config: DistillConfig) -> ShardIndex:
    ask(config)
    return write_distilled(config)


def command(config: DistillConfig) -> list[str]:
    teacher = config.teachers[0]
    options = {
        "server.base_url": teacher.server.base_url,
        "server.concurrency": teacher.server.concurrency,
        "server.unavailable_timeout": teacher.server.unavailable_timeout,
        "k": teacher.k,
        "max_tokens": teacher.max_tokens,
        "extra_body": teacher.extra_body,
        "checker.workers": teacher.checker.workers,
    }
    words = [word for name, value in options.items() for word in (f"--teachers.0.{name}", str(value))]
    return [sys.executable, "-m", "launch.cli", "data", "distill", config.shards, config.out, *words]


def stored(shards: Path, out: Path) -> list[TeacherResponse]:
    index = ShardIndex.load(shards)
    return [
        found for number in range(len(index.shards)) for found in read_shard_responses(out, index, number)
    ]


def content(responses: list[TeacherResponse]) -> list[TeacherResponse]:
    """Returns the responses without what depends on time."""
    return [replace(response, seconds=0.0, attempts=0) for response in responses]


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "shards").glob("shard-*")}


def test_responses_are_checked_counted_and_written(
    samples: list[Sample], shards: Path, reference: Path, server: ModelServer
) -> None:
    responses = stored(shards, reference)
    assert [r.key for r in responses] == [(sample.id, rollout) for sample in samples for rollout in range(4)]
    assert len({r.response for r in responses}) > 24, "each response has a seed of its own"
    by_id = {sample.id: sample for sample in samples}
    for found in responses:
        verdict = check_answer(found.response or "", by_id[found.id].answer)
        assert (found.accuracy, found.extracted) == (verdict.accuracy, verdict.extracted)
        assert found.reason == ("" if verdict.accuracy else "wrong")
        assert found.teacher == "tiny" and found.finish_reason == "stop" and found.seconds > 0
        assert found.kind == by_id[found.id].metadata["kind"] and found.answer == by_id[found.id].answer
    right = {r.key: r for r in responses if r.accuracy}
    assert right, "nothing is right by chance; take another seed"

    (stats,) = json.loads((reference / "stats.json").read_text()).values()
    for source, found in stats.items():
        of_source = [r for r in responses if r.source == source]
        assert (found["questions"], found["asked"], found["received"]) == (6, 24, 24)
        assert found["right"] == found["kept"] == sum(r.source == source for r in right.values())
        assert found["solved"] == len({r.id for r in right.values() if r.source == source})
        assert found["response_len"] == sum(r.response_len for r in of_source) > 24 * 8
        assert found["rejected"]["wrong"] == 24 - found["right"]

    kept = list(read_shards(reference / "shards"))
    assert [sample.id for sample in kept] == [f"{id}#{rollout}" for id, rollout in right]
    for sample, found in zip(kept, right.values(), strict=True):
        question = by_id[found.id]
        assert sample.images == question.images and sample.answer == question.answer
        assert [m.role for m in sample.messages] == ["system", "user", "assistant"]
        assert sample.messages[0].content == SYSTEM_PROMPT and sample.messages[1] == question.messages[1]
        assert sample.messages[2].content == found.response
        lineage = {"question": question.id, "teacher": "tiny", "rollout": found.rollout, "accuracy": 1.0}
        assert sample.metadata == question.metadata | lineage | {"decided_by": found.decided_by}


def test_server_gets_the_image_bytes_unchanged(
    samples: list[Sample], shards: Path, server: ModelServer, tmp_path: Path
) -> None:
    with FlakyProxy(server.url) as proxy:
        ask(config(proxy, shards, tmp_path, k=1))
    seen = Counter()
    for body in proxy.asked:
        system, user = body["messages"]
        assert "two parts and nothing else" in system["content"]
        image, text = user["content"]
        head, _, data = image["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        seen[base64.b64decode(data), text["text"]] += 1
    assert seen == Counter((s.images[0], s.messages[1].content.removeprefix(IMAGE_MARK)) for s in samples)


def test_only_missing_responses_are_asked_for(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    with FlakyProxy(server.url) as proxy:
        two = replace(config(proxy, shards, tmp_path, k=2), per_question=1)
        one_each = distill(two)
        assert len(proxy.asked) == len(set(proxy.seeds)) == 24
        assert len(distill(two)) == len(one_each)
        assert len(proxy.asked) == 24, "a complete run asks for nothing"
        assert len({s.metadata["question"] for s in read_shards(one_each.folder)}) == len(one_each)
        assert len(distill(replace(asking(two, k=4), per_question=4))) > len(one_each)
        assert len(proxy.asked) == len(set(proxy.seeds)) == 48
        with pytest.raises(ValueError, match="temperature was 1.0"):
            ask(asking(two, temperature=0.5, k=5))
        assert ask(asking(two, k=4, checker=CheckerConfig(workers=1, mode="released")))
        assert len(proxy.asked) == 48, "other rules check the same responses"
    assert {found.checker for found in stored(shards, tmp_path)} == {"released"}
    before = [(r.key, r.response) for r in stored(shards, reference)]
    assert [(r.key, r.response) for r in stored(shards, tmp_path)] == before


def test_requests_are_repeated_after_errors_and_garbage(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    faults = [
        "500", "429", "503", "502", "cut", "<html>down</html>", "{", "[]", '{"choices": []}', "408",
        '{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]}',
    ]  # fmt: skip

    def fault(seen: int, body: Body) -> str:
        return faults[body["seed"] % len(faults)] if seen < body["seed"] % 3 else ""

    with FlakyProxy(server.url, fault) as proxy:
        distill(config(proxy, shards, tmp_path))
    responses = stored(shards, tmp_path)
    assert content(responses) == content(stored(shards, reference))
    assert tars(tmp_path) == tars(reference)
    assert sum(found.attempts for found in responses) == len(proxy.asked) > 60
    assert {found.attempts for found in responses} == {1, 2, 3}


def test_failures_are_counted_by_reason_and_asked_again_on_request(
    shards: Path, server: ModelServer, tmp_path: Path
) -> None:
    broken = {"0": "500", "1": "400", "2": "garbage", "3": "late 60"}
    is_fixed = False

    def fault(_seen: int, body: Body) -> str:
        return "" if is_fixed else broken.get(str(body["seed"] % 8), "")

    with FlakyProxy(server.url, fault) as proxy:
        limits = {"retries": 1, "timeout": 2.0}
        wanted = config(proxy, shards, tmp_path, server=limits, max_failures=40)
        stats = ask(wanted)
        responses = stored(shards, tmp_path)
        expected = Counter(
            {"0": "server", "1": "refused", "2": "garbage", "3": "timeout"}[str(seed % 8)]
            for seed in set(proxy.seeds)
            if seed % 8 < 4
        )
        failed = [found for found in responses if found.is_failed]
        assert Counter(found.reason for found in failed) == expected and len(expected) == 4
        assert sum(found.received for found in stats.values()) == 48 - len(failed)
        tries = Counter(proxy.seeds)
        assert all(tries[seed] == {0: 2, 1: 1, 2: 2, 3: 2}.get(seed % 8, 1) for seed in tries)
        assert f"refused {expected['refused']}" in stats_table(stats)

        asked = len(proxy.asked)
        ask(wanted)
        assert len(proxy.asked) == asked, "a failure is an outcome"
        is_fixed = True
        ask(asking(wanted, ask_failed_again=True))
        assert sorted(proxy.seeds[asked:]) == sorted(seed for seed in tries if seed % 8 < 4)
    assert not any(found.is_failed for found in stored(shards, tmp_path))


def test_bad_samples_are_counted_and_the_others_asked(
    samples: list[Sample], server: ModelServer, tmp_path: Path
) -> None:
    broken = [
        replace(samples[0], answer=""),
        replace(samples[1], images=(b"RIFF but not an image",)),
        replace(samples[2], messages=samples[2].messages[:1]),
        *samples[3:],
    ]
    folder = tmp_path / "shards"
    index = write_shards(broken, folder)
    with (folder / index.shards[0].file).open("r+b") as tar:
        tar.seek(index[3].offset)
        tar.write(b"torn" * 64)
    with FlakyProxy(server.url) as proxy:
        wanted = config(proxy, folder, tmp_path / "out", max_failures=16)
        kept = list(read_shards(distill(wanted).folder))
    failed = Counter((a.id, a.reason) for a in stored(folder, tmp_path / "out") if a.is_failed)
    reasons = ("no_reference", "image", "text", "checksum")
    assert failed == {(samples[n].id, reason): 4 for n, reason in enumerate(reasons)}
    assert len(proxy.asked) == 4 * (len(samples) - 4)
    assert {s.metadata["question"] for s in kept} <= {sample.id for sample in samples[4:]}


def test_too_many_failures_stop_the_run(shards: Path, server: ModelServer, tmp_path: Path) -> None:
    with (
        FlakyProxy(server.url, lambda _seen, _body: "400") as proxy,
        pytest.raises(ValueError, match="4 of 4 requests are bad, more than teacher.max_failures=3"),
    ):
        ask(config(proxy, shards, tmp_path, max_failures=3))
    assert len(proxy.asked) < 48
    with (
        FlakyProxy(server.url, lambda _seen, _body: "404") as proxy,
        pytest.raises(ValueError, match="check base_url, model"),
    ):
        ask(config(proxy, shards, tmp_path))


def test_killed_run_continues_and_asks_nothing_twice(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    with FlakyProxy(server.url, lambda _seen, _body: "late 0.3") as proxy:
        wanted = config(proxy, shards, tmp_path, server={"concurrency": 3})
        process = subprocess.Popen(command(wanted), stderr=subprocess.DEVNULL)
        log = responses_path(tmp_path, 1).with_suffix(".log")
        wait_until(
            lambda: log.exists() and log.read_bytes().count(b"\n") >= 4
        )  # in the middle of the second shard
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines)[:-7])  # as if killed while the last line was written
        have = {(row["id"], row["rollout"]) for row in map(json.loads, lines[:-1])}
        before = Counter(proxy.seeds)
        subprocess.run(command(wanted), check=True, capture_output=True)
        after = Counter(proxy.seeds) - before
    responses = stored(shards, tmp_path)
    assert tars(tmp_path) == tars(reference) and content(responses) == content(stored(shards, reference))
    assert len(after) == after.total() == 48 - 16 - len(have)
    assert all(count <= 2 for count in Counter(proxy.seeds).values())
    asked_twice = [seed for seed in after if seed in before]
    assert 1 <= len(asked_twice) <= 1 + wanted.teachers[0].server.concurrency, (
        "the torn line and requests in flight"
    )


def test_second_process_on_the_same_shard_is_refused(
    shards: Path, server: ModelServer, tmp_path: Path
) -> None:
    with FlakyProxy(server.url, lambda _seen, _body: "late 1") as proxy:
        wanted = config(proxy, shards, tmp_path, server={"concurrency": 1}, k=1)
        first = threading.Thread(target=ask_shards, args=([Asked(config=wanted.asks[0])], [0]))
        first.start()
        wait_until(lambda: bool(proxy.asked))
        with pytest.raises(ValueError, match="another process is writing"):
            ask_shards([Asked(config=wanted.asks[0])], [0])
        first.join()
    assert len(proxy.asked) == 4


def test_pass_rate_is_the_share_of_right_responses(
    samples: list[Sample],
    shards: Path,
    server: ModelServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with FlakyProxy(server.url) as proxy:
        options = [
            "--teacher.server.base_url",
            proxy.url,
            "--teacher.max_tokens",
            "64",
            "--teacher.extra_body",
            FORM,
        ]
        assert main(["data", "score", str(shards), str(tmp_path), *options]) == 0
    assert "questions" in capsys.readouterr().out
    scores = read_scores(tmp_path / "scores.jsonl")
    right = Counter(found.id for found in stored(shards, tmp_path) if found.accuracy)
    assert scores == {sample.id: right[sample.id] / 4 for sample in samples}
    assert 0 < sum(scores.values()) < len(samples)
    scored = list(add_pass_rates(samples, scores, lambda sample, reason: None))
    assert scored[0].metadata == samples[0].metadata | {"pass_rate": right[samples[0].id] / 4}


def questions_to_judge(asked: list[dict]) -> list[dict[str, str]]:
    return [json.loads(body["messages"][1]["content"]) for body in asked]


@pytest.mark.parametrize("word", ["Equivalent", "Different", "Perhaps"])
def test_judge_decides_what_the_rules_find_wrong(
    word: str, shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    verdict = {"structured_outputs": {"regex": f"Analysis: not equivalent {{0,1}}\nJudgment: {word}"}}
    rules = content(stored(shards, reference))
    with FlakyProxy(server.url) as proxy, FlakyProxy(server.url, extra=verdict) as judge:
        wanted = config(proxy, shards, tmp_path, judge=JudgeConfig(base_url=judge.url))
        stats = ask(wanted)
        judged = len(judge.asked)
        ask(wanted)
        assert len(judge.asked) == judged, "judgements are not asked for twice"
        responses = stored(shards, tmp_path)
        ask(asking(wanted, k=5))
    is_clear = word != "Perhaps"
    fifth = [r for r in stored(shards, tmp_path) if r.rollout == 4 and (r.reason or r.decided_by == "judge")]
    wrong = [old.key for old in rules if not old.accuracy]
    pairs = {(old.answer, old.extracted) for old in rules if not old.accuracy}
    first, later = questions_to_judge(judge.asked[:judged]), questions_to_judge(judge.asked[judged:])
    assert {(q["reference"], q["candidate"]) for q in first} == pairs
    assert len(first) <= len(wrong) and {body["temperature"] for body in judge.asked} == {0.0}
    assert not is_clear or len({to_json(q) for q in first}) == len(first), "the same question is asked once"
    new = {(r.answer, r.extracted) for r in fifth} | (set() if is_clear else pairs)
    assert {(q["reference"], q["candidate"]) for q in later} == new, (
        "judgements are kept when more responses come"
    )
    assert {r.key for r in responses if r.decided_by == "judge"} == set(wrong if word == "Equivalent" else ())
    reason = {"Equivalent": "", "Different": "wrong", "Perhaps": "not_judged"}[word]
    assert {r.reason for r in responses if r.key in wrong} == {reason}
    assert sum(found.kept for found in stats.values()) == (48 if word == "Equivalent" else 48 - len(wrong))

    with FlakyProxy(server.url, extra=verdict) as judge:
        source, out = str(responses_path(reference, 0)), str(tmp_path / "verified.jsonl")
        checker, by = CheckerConfig(workers=1), JudgeConfig(base_url=judge.url)
        summary = score_file(VerifyConfig(source=source, out=out, checker=checker, judge=by))
    wrong = [old for old in rules[:16] if not old.accuracy]
    assert summary.decided_by.get("judge", 0) == (len(wrong) if word == "Equivalent" else 0)
    assert summary.not_judged == (len(wrong) if word == "Perhaps" else 0)


def test_unreachable_server_fails_with_hint(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    options = ["--teachers.0.server.base_url", url, "--teachers.0.server.unavailable_timeout", "1"]
    code = main(["data", "distill", str(shards), str(tmp_path), *options])
    error = capsys.readouterr().err
    assert code == 2 and "same command again" in error and error.count("cannot be reached") == 1


@pytest.mark.slow
def test_run_continues_when_the_server_was_away_for_a_while(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FlakyProxy(server.url, lambda _seen, _body: "late 0.2") as proxy:
        wanted = config(proxy, shards, tmp_path, server={"unavailable_timeout": 300.0})
        run = threading.Thread(target=distill, args=(wanted,))
        run.start()
        wait_until(lambda: len(proxy.asked) >= 20)
        proxy.upstream = f"http://127.0.0.1:{free_port()}"  # where nobody listens, as after a kill
        away = len(proxy.asked)
        wait_until(lambda: len(proxy.asked) >= away + 8)
        proxy.upstream = server.url
        run.join()
    responses = stored(shards, tmp_path)
    assert content(responses) == content(stored(shards, reference))
    assert tars(tmp_path) == tars(reference)
    assert {found.attempts > 1 for found in responses} == {True, False}
    assert sum(found.attempts for found in responses) == len(proxy.asked), (
        "received responses are not asked again"
    )
    said = capsys.readouterr().err
    assert said.count("cannot be reached") == said.count("responds again") == 1
