"""Distillation and scoring against a real vLLM server of a tiny model, through a proxy that fails on demand.

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
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.distill.answers import Answer, answers_path, read_answers
from data_pipeline.distill.config import DistillConfig, ScoreConfig
from data_pipeline.distill.distill import distill_shards, finish_distill, yields_table
from data_pipeline.distill.scoring import finish_scores, read_scores, score_shards, with_scores
from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.images import normalise
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, Sample
from data_pipeline.verify.check import check_answer
from data_pipeline.verify.config import VerifyConfig
from data_pipeline.verify.score_file import verify_file
from launch.cli import main
from tests.helpers.flaky_proxy import Body, FlakyProxy, free_port
from tests.helpers.model_server import ModelServer

FORM = '{"structured_outputs": {"regex": "<think>[0-9]{1,3}</think><answer>[3-6]</answer>"}}'
SHARDS = range(3)


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
    """The folder of a run without any trouble, one request at a time."""
    out = tmp_path_factory.mktemp("reference")
    with FlakyProxy(server.url) as proxy:
        distill(config(proxy, shards, out, concurrency=1))
    return out


def config(proxy: FlakyProxy, shards: Path, out: Path, **options: object) -> DistillConfig:
    common = {
        "k": 4,
        "max_tokens": 64,
        "concurrency": 8,
        "extra_body": FORM,
        "checkers": 1,
        "patience": 120.0,
    }
    return DistillConfig(base_url=proxy.url, shards=str(shards), out=str(out), **common | options)  # pyright: ignore


def distill(config: DistillConfig) -> ShardIndex:
    distill_shards(config, SHARDS)
    return finish_distill(config)[1]


def command(config: DistillConfig) -> list[str]:
    names = ("base_url", "k", "max_tokens", "concurrency", "extra_body", "checkers", "patience")
    options = [text for name in names for text in (f"--{name}", str(getattr(config, name)))]
    return [sys.executable, "-m", "launch.cli", "data", "distill", config.shards, config.out, *options]


def stored(shards: Path, out: Path) -> list[Answer]:
    index = ShardIndex.load(shards)
    return [answer for number in range(len(index.shards)) for answer in read_answers(out, index, number)]


def content(answers: list[Answer]) -> list[Answer]:
    """Without what depends on time."""
    return [replace(answer, seconds=0.0, attempts=0, hedged=False) for answer in answers]


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "shards").glob("shard-*")}


def test_answers_are_checked_counted_and_written(
    samples: list[Sample], shards: Path, reference: Path, server: ModelServer
) -> None:
    answers = stored(shards, reference)
    assert [a.key for a in answers] == [(sample.id, rollout) for sample in samples for rollout in range(4)]
    assert len({a.response for a in answers}) > 24, "each answer has a seed of its own"
    by_id = {sample.id: sample for sample in samples}
    for answer in answers:
        verdict = check_answer(answer.response or "", by_id[answer.id].answer)
        assert (answer.accuracy, answer.extracted) == (verdict.accuracy, verdict.extracted)
        assert answer.reason == ("" if verdict.accuracy else "wrong")
        assert answer.teacher == "tiny" and answer.finish_reason == "stop" and answer.seconds > 0
    right = {a.key: a for a in answers if a.accuracy}
    assert right, "nothing is right by chance; take another seed"

    yields = json.loads((reference / "yields.json").read_text())
    for source, found in yields.items():
        of_source = [a for a in answers if a.source == source]
        assert (found["questions"], found["asked"], found["answered"]) == (6, 24, 24)
        assert found["right"] == found["kept"] == sum(a.source == source for a in right.values())
        assert found["solved"] == len({a.id for a in right.values() if a.source == source})
        assert found["tokens_out"] == sum(a.tokens_out for a in of_source) > 24 * 8
        assert found["reasons"]["wrong"] == 24 - found["right"]

    kept = list(read_shards(reference / "shards"))
    assert [sample.id for sample in kept] == [f"{id}#{rollout}" for id, rollout in right]
    for sample, answer in zip(kept, right.values(), strict=True):
        question = by_id[answer.id]
        assert sample.images == question.images and sample.answer == question.answer
        assert [m.role for m in sample.messages] == ["system", "user", "assistant"]
        assert sample.messages[0].content == SYSTEM_PROMPT and sample.messages[1] == question.messages[1]
        assert sample.messages[2].content == answer.response
        lineage = {"question": question.id, "teacher": "tiny", "rollout": answer.rollout, "accuracy": 1.0}
        assert sample.metadata == question.metadata | lineage | {"decided_by": answer.decided_by}


def test_the_server_sees_the_very_bytes_of_the_images(
    samples: list[Sample], shards: Path, server: ModelServer, tmp_path: Path
) -> None:
    with FlakyProxy(server.url) as proxy:
        distill_shards(config(proxy, shards, tmp_path, k=1), SHARDS)
    seen = Counter()
    for body in proxy.asked:
        system, user = body["messages"]
        assert "two parts and nothing else" in system["content"]
        image, text = user["content"]
        head, _, data = image["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        seen[base64.b64decode(data), text["text"]] += 1
    assert seen == Counter((s.images[0], s.messages[1].content.removeprefix(IMAGE_MARK)) for s in samples)


def test_nothing_is_asked_twice_and_more_answers_cost_only_the_missing(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    with FlakyProxy(server.url) as proxy:
        two = config(proxy, shards, tmp_path, k=2, per_question=1)
        one_each = distill(two)
        assert len(proxy.asked) == len(set(proxy.seeds)) == 24
        assert len(distill(two)) == len(one_each)
        assert len(proxy.asked) == 24, "a complete run asks for nothing"
        assert len({s.metadata["question"] for s in read_shards(one_each.folder)}) == len(one_each)
        assert len(distill(replace(two, k=4, per_question=4))) > len(one_each)
        assert len(proxy.asked) == len(set(proxy.seeds)) == 48
        with pytest.raises(ValueError, match="temperature was 1.0"):
            distill_shards(replace(two, temperature=0.5, k=5), SHARDS)
        assert distill_shards(replace(two, k=4, mode="released"), SHARDS)
        assert len(proxy.asked) == 48, "other rules check the same answers"
    assert {answer.checker for answer in stored(shards, tmp_path)} == {"released"}
    before = [(a.key, a.response) for a in stored(shards, reference)]
    assert [(a.key, a.response) for a in stored(shards, tmp_path)] == before


def test_errors_and_garbage_are_outlasted(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    faults = [
        "500", "429", "503", "502", "cut", "<html>late night</html>", "{", "[]", '{"choices": []}', "408",
        '{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]}',
    ]  # fmt: skip

    def fault(seen: int, body: Body) -> str:
        return faults[body["seed"] % len(faults)] if seen < body["seed"] % 3 else ""

    with FlakyProxy(server.url, fault) as proxy:
        distill(config(proxy, shards, tmp_path))
    answers = stored(shards, tmp_path)
    assert content(answers) == content(stored(shards, reference))
    assert tars(tmp_path) == tars(reference)
    assert sum(answer.attempts for answer in answers) == len(proxy.asked) > 60
    assert {answer.attempts for answer in answers} == {1, 2, 3}


def test_what_fails_for_good_is_counted_by_reason_and_asked_again_when_told(
    shards: Path, server: ModelServer, tmp_path: Path
) -> None:
    broken = {"0": "500", "1": "400", "2": "garbage", "3": "late 60"}
    is_mended = False

    def fault(_seen: int, body: Body) -> str:
        return "" if is_mended else broken.get(str(body["seed"] % 8), "")

    with FlakyProxy(server.url, fault) as proxy:
        wanted = config(proxy, shards, tmp_path, retries=1, timeout=2.0, max_bad_samples=40)
        yields = distill_shards(wanted, SHARDS)
        answers = stored(shards, tmp_path)
        expected = Counter(
            {"0": "server", "1": "refused", "2": "garbage", "3": "timeout"}[str(seed % 8)]
            for seed in set(proxy.seeds)
            if seed % 8 < 4
        )
        failed = [answer for answer in answers if answer.is_failed]
        assert Counter(answer.reason for answer in failed) == expected and len(expected) == 4
        assert sum(found.answered for found in yields.values()) == 48 - len(failed)
        tries = Counter(proxy.seeds)
        assert all(tries[seed] == {0: 2, 1: 1, 2: 2, 3: 2}.get(seed % 8, 1) for seed in tries)
        assert f"refused {expected['refused']}" in yields_table(yields)

        asked = len(proxy.asked)
        distill_shards(wanted, SHARDS)
        assert len(proxy.asked) == asked, "a failure is an outcome"
        is_mended = True
        distill_shards(replace(wanted, ask_failed_again=True), SHARDS)
        assert sorted(proxy.seeds[asked:]) == sorted(seed for seed in tries if seed % 8 < 4)
    assert not any(answer.is_failed for answer in stored(shards, tmp_path))


def test_samples_that_cannot_be_asked_are_counted_and_the_others_asked(
    samples: list[Sample], server: ModelServer, tmp_path: Path
) -> None:
    broken = [
        replace(samples[0], answer=""),
        replace(samples[1], images=(b"RIFF and no picture",)),
        replace(samples[2], messages=samples[2].messages[:1]),
        *samples[3:],
    ]
    folder = tmp_path / "shards"
    index = write_shards(broken, folder)
    with (folder / index.shards[0].file).open("r+b") as tar:
        tar.seek(index.refs[3].offset)
        tar.write(b"torn" * 64)
    with FlakyProxy(server.url) as proxy:
        wanted = config(proxy, folder, tmp_path / "out", max_bad_samples=16)
        distill_shards(wanted, [0])
        kept = list(read_shards(finish_distill(wanted)[1].folder))
    failed = Counter((a.id, a.reason) for a in stored(folder, tmp_path / "out") if a.is_failed)
    reasons = ("no_reference", "image", "text", "checksum")
    assert failed == {(samples[n].id, reason): 4 for n, reason in enumerate(reasons)}
    assert len(proxy.asked) == 4 * (len(samples) - 4)
    assert {s.metadata["question"] for s in kept} <= {sample.id for sample in samples[4:]}


def test_too_many_failures_stop_the_run(shards: Path, server: ModelServer, tmp_path: Path) -> None:
    with (
        FlakyProxy(server.url, lambda _seen, _body: "400") as proxy,
        pytest.raises(ValueError, match="6 of 6 answers failed, more than max_bad_samples=0.05"),
    ):
        distill_shards(config(proxy, shards, tmp_path), SHARDS)
    with (
        FlakyProxy(server.url, lambda _seen, _body: "404") as proxy,
        pytest.raises(ValueError, match="check base_url, model"),
    ):
        distill_shards(config(proxy, shards, tmp_path), SHARDS)


def test_a_straggler_is_asked_twice_and_paid_once(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    def fault(seen: int, body: Body) -> str:
        return "late 60" if not seen and body["seed"] % 8 == 0 else ""

    started = time.monotonic()
    with FlakyProxy(server.url, fault) as proxy:
        distill(config(proxy, shards, tmp_path, hedge_after=2.0))
    assert time.monotonic() - started < 40
    answers = stored(shards, tmp_path)
    assert content(answers) == content(stored(shards, reference))
    slow = [seed for seed, count in Counter(proxy.seeds).items() if count == 2]
    assert (
        {seed for seed in slow if seed % 8 == 0} == {seed for seed in proxy.seeds if seed % 8 == 0} != set()
    )
    assert sum(answer.hedged for answer in answers) == len(slow)
    assert all(answer.seconds < 30 for answer in answers), "the second request won"


def test_a_killed_run_continues_and_pays_for_nothing_twice(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    with FlakyProxy(server.url, lambda _seen, _body: "late 0.3") as proxy:
        wanted = config(proxy, shards, tmp_path, concurrency=3)
        logs = [answers_path(tmp_path, number) for number in SHARDS]
        process = subprocess.Popen(command(wanted), stderr=subprocess.DEVNULL)
        log = logs[1].with_name(logs[1].name + ".partial")
        until = time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b"\n") >= 4):  # in the middle of the second shard
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines)[:-7])  # as if the kill had come while the last line was written
        have = {(a["id"], a["rollout"]) for a in map(json.loads, lines[:-1])}
        before = Counter(proxy.seeds)
        subprocess.run(command(wanted), check=True, capture_output=True)
        after = Counter(proxy.seeds) - before
    answers = stored(shards, tmp_path)
    assert tars(tmp_path) == tars(reference) and content(answers) == content(stored(shards, reference))
    assert len(after) == after.total() == 48 - 16 - len(have)
    assert all(count <= 2 for count in Counter(proxy.seeds).values())
    paid_twice = [seed for seed in after if seed in before]
    assert 1 <= len(paid_twice) <= 1 + wanted.concurrency, "only what was torn or under way at the kill"


def test_a_second_process_at_the_same_answers_is_refused(
    shards: Path, server: ModelServer, tmp_path: Path
) -> None:
    with FlakyProxy(server.url, lambda _seen, _body: "late 1") as proxy:
        wanted = config(proxy, shards, tmp_path, k=1, concurrency=1)
        first = threading.Thread(target=distill_shards, args=(wanted, [0]))
        first.start()
        while not proxy.asked:
            time.sleep(0.02)
        with pytest.raises(ValueError, match="another process is writing"):
            distill_shards(wanted, [0])
        first.join()
    assert len(proxy.asked) == 4


def test_perplexity_is_transformers(
    samples: list[Sample], shards: Path, server: ModelServer, tiny_hf: Path, tmp_path: Path
) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    with FlakyProxy(server.url) as proxy:
        wanted = ScoreConfig(
            base_url=proxy.url, shards=str(shards), out=str(tmp_path), kind="perplexity", checkers=1
        )
        score_shards(wanted, SHARDS)
        assert len(proxy.asked) == 24
        score_shards(wanted, SHARDS)
        assert len(proxy.asked) == 24
    scores = read_scores(finish_scores(wanted))
    assert list(scores) == [sample.id for sample in samples]

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_hf, dtype=torch.float32)
    encoder = ChatEncoder.from_hf(tiny_hf, ImageConfig())
    for sample in samples[:4]:
        example = encoder.encode(sample)
        input_ids = example.input_ids[None]
        with torch.no_grad():
            logits = model(
                input_ids=input_ids,
                pixel_values=normalise(example.pixels),
                image_grid_thw=example.image_grid_thw,
                mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
            ).logits[0]
        logprobs = logits.log_softmax(-1)[:-1].gather(-1, example.input_ids[1:, None])[:, 0]
        learned = logprobs[example.loss_mask[1:] > 0][:-1]  # the last one ends the turn
        assert scores[sample.id]["perplexity"] == pytest.approx((-learned.mean()).exp().item(), rel=1e-4)


def test_pass_rate_is_the_share_of_right_answers(
    samples: list[Sample],
    shards: Path,
    server: ModelServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with FlakyProxy(server.url) as proxy:
        options = ["--base_url", proxy.url, "--max_tokens", "64", "--extra_body", FORM, "--checkers", "1"]
        assert main(["data", "score", str(shards), str(tmp_path), "--kind", "pass_rate", *options]) == 0
    assert "questions" in capsys.readouterr().out
    scores = read_scores(tmp_path / "scores.jsonl")
    right = Counter(a.id for a in stored(shards, tmp_path) if a.accuracy)
    assert scores == {sample.id: {"pass_rate": right[sample.id] / 4} for sample in samples}
    assert 0 < sum(row["pass_rate"] for row in scores.values()) < len(samples)
    scored = list(with_scores(samples, scores, ["pass_rate"], lambda sample, reason: None))
    assert scored[0].metadata == samples[0].metadata | {"pass_rate": right[samples[0].id] / 4}


@pytest.mark.parametrize("word", ["Equivalent", "Different", "Perhaps"])
def test_a_judge_rules_on_what_the_rules_find_wrong(
    word: str, shards: Path, server: ModelServer, tmp_path: Path, reference: Path
) -> None:
    verdict = {"structured_outputs": {"regex": f"Analysis: not equivalent {{0,1}}\nJudgment: {word}"}}
    rules = content(stored(shards, reference))
    with FlakyProxy(server.url) as proxy, FlakyProxy(server.url, extra=verdict) as judge:
        wanted = config(proxy, shards, tmp_path, judge=judge.url)
        yields = distill_shards(wanted, SHARDS)
        judged = len(judge.asked)
        distill_shards(wanted, SHARDS)
        assert len(judge.asked) == judged, "judgements are not paid twice either"
        answers = stored(shards, tmp_path)
        distill_shards(replace(wanted, k=5), SHARDS)
    is_clear = word != "Perhaps"
    fifth = [a for a in stored(shards, tmp_path) if a.rollout == 4 and (a.reason or a.decided_by == "judge")]
    assert len(judge.asked) == judged * (1 if is_clear else 2) + len(fifth), "nor when more answers come"
    wrong = [old.key for old in rules if not old.accuracy]
    assert judged == len(wrong) and {body["temperature"] for body in judge.asked} == {0.0}
    assert {a.key for a in answers if a.decided_by == "judge"} == set(wrong if word == "Equivalent" else ())
    reason = {"Equivalent": "", "Different": "wrong", "Perhaps": "not_judged"}[word]
    assert {a.reason for a in answers if a.key in wrong} == {reason}
    assert sum(found.kept for found in yields.values()) == (48 if word == "Equivalent" else 48 - len(wrong))

    with FlakyProxy(server.url, extra=verdict) as judge:
        source = answers_path(reference, 0)
        out = tmp_path / "verified.jsonl"
        summary = verify_file(VerifyConfig(source=str(source), out=str(out), workers=1, judge=judge.url))
    wrong = [old for old in rules[:16] if not old.accuracy]
    assert summary.decided_by.get("judge", 0) == (len(wrong) if word == "Equivalent" else 0)
    assert summary.not_judged == (len(wrong) if word == "Perhaps" else 0)


def test_a_server_that_is_away_too_long_ends_the_run_with_advice(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    code = main(["data", "distill", str(shards), str(tmp_path), "--base_url", nobody, "--patience", "1"])
    error = capsys.readouterr().err
    assert code == 2 and "the same command again" in error and error.count("cannot be reached") == 1


def test_the_server_is_killed_and_restarted_in_the_middle(
    shards: Path, server: ModelServer, tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FlakyProxy(server.url, lambda _seen, _body: "late 0.2") as proxy:
        wanted = config(proxy, shards, tmp_path, patience=300.0)
        run = threading.Thread(target=distill, args=(wanted,))
        run.start()
        until = time.monotonic() + 60
        while len(proxy.asked) < 20 and time.monotonic() < until:
            time.sleep(0.02)
        server.kill()
        server.start()
        run.join()
    answers = stored(shards, tmp_path)
    assert content(answers) == content(stored(shards, reference))
    assert tars(tmp_path) == tars(reference)
    assert any(answer.attempts > 1 for answer in answers) and any(answer.attempts == 1 for answer in answers)
    assert sum(answer.attempts for answer in answers) == len(proxy.asked), (
        "who had an answer was not asked again"
    )
    said = capsys.readouterr().err
    assert said.count("cannot be reached") == said.count("answers again") == 1
