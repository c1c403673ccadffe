"""The scorer: rewards in order whatever the timing, a judge that is slow, wrong, away or asked before, errors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil
import pytest

from benchmarks.chaos.parts import Judge
from data_pipeline.served.client import ServerDown
from data_pipeline.served.config import JudgeConfig
from data_pipeline.verify.config import CheckerConfig
from rl.config import EngineConfig, SamplingConfig
from rl.rewards import scorer as scorer_module
from rl.rewards.config import RewardConfig
from rl.rewards.metrics import compute_reward_metrics
from rl.rewards.scorer import Scorer
from rl.rollout.calls import EngineCalls, Report, Request
from rl.rollout.manager import RolloutManager
from rl.types import Group, Prompt, Responses, Rollout
from tests.helpers.adding_teacher import AddingTeacher
from tests.helpers.flaky_proxy import free_port
from tests.helpers.groups import make_prompt, make_rollout
from tests.helpers.processes import wait_until

TAGGED = "<think>a</think><answer>{}</answer>"
ONE_WORKER = CheckerConfig(workers=1)
EQUIVALENT, DIFFERENT = (f"Analysis: x\nJudgment: {word}" for word in ("Equivalent", "Different"))
Asked = list[tuple[Prompt, tuple[Rollout, ...]]]


def ask(*groups: Sequence[str]) -> Asked:
    """Returns prompts, whose answer is 7, with rollouts of these texts."""
    return [
        (make_prompt(number), tuple(make_rollout(response=response) for response in group))
        for number, group in enumerate(groups)
    ]


def score(scorer: Scorer, asked: Asked) -> list[Group]:
    for prompt, rollouts in asked:
        scorer.add(prompt, Responses(rollouts=rollouts), max_tokens=100)
    return scorer.collect(asked)


def rules(groups: Sequence[Group]) -> list[list[str]]:
    return [[reward.verdict.decided_by for reward in group.rewards] for group in groups]


@contextmanager
def judged(server: AddingTeacher | Judge, folder: Path, **fields: object) -> Iterator[Scorer]:
    judge = JudgeConfig(base_url=server.url, **fields)  # pyright: ignore
    with Scorer(RewardConfig(checker=ONE_WORKER, use_judge=True, judge=judge), folder) as scorer:
        yield scorer


def test_scores_of_groups_are_in_order(tmp_path: Path) -> None:
    asked = ask([TAGGED.format(7), TAGGED.format(8)], [], [r"\boxed{7.0}", "7"])
    with Scorer(RewardConfig(checker=ONE_WORKER), tmp_path) as scorer:
        for prompt, rollouts in reversed(asked):  # as they came
            scorer.add(prompt, Responses(rollouts=rollouts), max_tokens=100)
        groups = scorer.collect(asked)
    assert [(group.prompt, group.rollouts) for group in groups] == asked
    rewards = [[reward.total for reward in group.rewards] for group in groups]
    assert rewards == [pytest.approx([1.0, 0.1]), [], pytest.approx([1.0, 0.9])]
    assert rules(groups) == [["exact", "none"], [], ["number", "exact"]]


def test_scorer_that_is_closed_refuses_what_it_would_never_score(tmp_path: Path) -> None:
    asked = ask([TAGGED.format(7)])
    with Scorer(RewardConfig(checker=ONE_WORKER), tmp_path) as scorer:
        pass
    with pytest.raises(CancelledError, match="closed"):
        score(scorer, asked)


def test_same_prompt_twice_in_a_step_has_its_own_rollouts_each_time(tmp_path: Path) -> None:
    asked = [*ask([TAGGED.format(7)]), *ask([TAGGED.format(8)])]
    with Scorer(RewardConfig(checker=ONE_WORKER), tmp_path) as scorer:
        assert [group.rewards[0].total for group in score(scorer, asked)] == pytest.approx([1.0, 0.1])
        assert not scorer._jobs


def test_only_wrong_answers_are_judged_and_nobody_waits_for_the_judge(tmp_path: Path) -> None:
    """The judge replies only after all other groups are scored: were one of them held up, this would not end."""
    asked = ask(
        [TAGGED.format("days in a week"), TAGGED.format(7), "<think>"], [TAGGED.format(7)], ["7", "8 "]
    )
    others_done = threading.Event()
    with AddingTeacher() as server:

        def respond(number: int, total: int) -> str:
            assert others_done.wait(60)
            return EQUIVALENT

        server.respond = respond
        with judged(server, tmp_path) as scorer:
            for prompt, rollouts in asked:
                scorer.add(prompt, Responses(rollouts=rollouts), max_tokens=100)
            (second,) = scorer.collect(asked[1:2])
            assert rules([second]) == [["exact"]]
            others_done.set()
            groups = [*scorer.collect(asked[:1]), second, *scorer.collect(asked[2:])]
    assert rules(groups) == [["judge", "exact", "none"], ["exact"], ["exact", "judge"]]
    assert [reward.judged for reward in groups[0].rewards] == ["asked", "no", "no"]
    candidates = [json.loads(question)["candidate"] for question in server.questions]
    assert sorted(candidates) == ["8", "days in a week"]
    metrics = compute_reward_metrics([reward for group in groups for reward in group.rewards])
    assert {name: value for name, value in metrics.items() if name.startswith("judge")} == {
        "judge_asked": 2,
        "judge_cached": 0,
        "judge_right": 2,
        "judge_failures": 0,
    }


class OneByOne:
    """An engine that generates the response to one prompt after the other; `generate(number)` is called for each."""

    def __init__(self, response: str, generate: Callable[[int], None]) -> None:
        self._response, self._generate = response, generate
        self._asked: SimpleQueue[tuple[int, Request]] = SimpleQueue()
        self._taken = 0

    def calls(self) -> EngineCalls[str]:
        return EngineCalls(
            start=lambda: "engine",
            stop=lambda engine: None,
            submit=lambda engine, requests: [self._asked.put(request) for request in requests],
            update=lambda engines, version: [None],
            poll=self._poll,
        )

    def _poll(self, seconds: float) -> list[tuple[str, Report | Exception]]:
        try:
            number, _ = self._asked.get(timeout=seconds)
        except Empty:
            return []
        self._generate(number)
        self._taken += 1
        found = (number, Responses(rollouts=(make_rollout(response=self._response),)))
        report = Report(
            finished=[found], taken=self._taken, running=0, waiting=0, tokens=self._taken, version=0
        )
        return [("engine", report)]


def test_scoring_starts_with_the_first_reply_and_never_holds_up_generation(tmp_path: Path) -> None:
    """The last response comes only when the judge was asked about the first, which replies only after the last came.

    So neither waits for the other, or this would not end.
    """
    judge_asked, all_generated = threading.Event(), threading.Event()
    events: list[str] = []

    def generate(number: int) -> None:
        if number == 3:
            assert judge_asked.wait(60)
            all_generated.set()
        events.append(f"response {number}")

    def respond(number: int, total: int) -> str:
        judge_asked.set()
        assert all_generated.wait(60)
        events.append("judgement")
        return EQUIVALENT

    engine, sampling = OneByOne(TAGGED.format("days in a week"), generate), SamplingConfig(n=1)
    with AddingTeacher() as server:
        server.respond = respond
        manager = RolloutManager(engine.calls(), EngineConfig(max_num_seqs=1))
        with closing(manager), judged(server, tmp_path) as scorer:
            prompts = [replace(make_prompt(i), question=f"Question {i}?") for i in range(4)]
            replies = scorer.scoring(manager.generate)(prompts, sampling, 0)
            groups = scorer.collect([(p, r.rollouts) for p, r in zip(prompts, replies, strict=True)])
    assert [group.prompt for group in groups] == prompts and rules(groups) == [["judge"]] * 4
    assert [event for event in events if event != "judgement"] == [f"response {i}" for i in range(4)]
    assert events.count("judgement") == 4 and events.index("judgement") >= 3


def test_judge_is_asked_once_also_by_a_resumed_run(tmp_path: Path) -> None:
    asked = ask(
        [TAGGED.format("days in a week")] * 3 + [TAGGED.format("a dozen")], [TAGGED.format("days in a week")]
    )
    with AddingTeacher() as server:
        server.respond = lambda number, total: (
            EQUIVALENT if "days in a week" in json.loads(server.questions[-1])["candidate"] else DIFFERENT
        )
        with judged(server, tmp_path, concurrency=1) as scorer:
            first = score(scorer, asked)
        assert len(server.questions) == 2
        assert rules(first) == [["judge", "judge", "judge", "none"], ["judge"]]
        assert sum(reward.judged == "asked" for group in first for reward in group.rewards) == 2
        lines = (tmp_path / "judge.jsonl").read_bytes()
        (tmp_path / "judge.jsonl").write_bytes(lines + b'{"key": "0')  # torn by a kill
        with judged(server, tmp_path) as scorer:
            assert rules(score(scorer, asked)) == rules(first)
        assert len(server.questions) == 2 and (tmp_path / "judge.jsonl").read_bytes() == lines


@pytest.mark.parametrize("said", ["Perhaps", 400, 500])
def test_failures_are_no_silent_zeros(said: str | int, tmp_path: Path) -> None:
    asked = ask([TAGGED.format("days in a week"), TAGGED.format(7)])
    with AddingTeacher() as server:
        server.respond = lambda number, total: said
        with judged(server, tmp_path, retries=0) as scorer:
            groups = score(scorer, asked)
            metrics = compute_reward_metrics(groups[0].rewards)
            assert rules(groups) == [["judge_failed", "exact"]]
            assert (metrics["judge_failures"], metrics["judge_right"], metrics["reward_accuracy"]) == (
                1,
                0,
                0.5,
            )
            server.respond = lambda number, total: EQUIVALENT
            assert rules(score(scorer, asked)) == [["judge", "exact"]], "a failure is asked for again"


def test_judge_is_not_asked_where_the_rules_alone_decide(tmp_path: Path) -> None:
    ((prompt, rollouts),) = ask([TAGGED.format("days in a week")])
    with AddingTeacher() as server, judged(server, tmp_path) as scorer:
        server.respond = lambda number, total: EQUIVALENT
        found = scorer.score(prompt, Responses(rollouts=rollouts), max_tokens=100, asks_judge=False)
        assert rules([found.result(60)]) == [["none"]]
        assert rules(score(scorer, [(prompt, rollouts)])) == [["judge"]]


@pytest.mark.parametrize("when_down", ["stop", "count"])
def test_judge_that_goes_away_stops_the_run_or_is_counted(when_down: str, tmp_path: Path) -> None:
    asked = ask([TAGGED.format("days in a week")])
    with (
        AddingTeacher() as server,
        judged(server, tmp_path, unavailable_timeout=0.2, when_down=when_down) as scorer,
    ):
        server.respond = lambda number, total: 503
        if when_down == "count":
            assert rules(score(scorer, asked)) == [["judge_failed"]]
            return
        with pytest.raises(
            ServerDown, match=r"was unavailable for unavailable_timeout=0.2 s .* same command again"
        ):
            score(scorer, asked)
        with pytest.raises(ServerDown):  # no further responses are generated for nothing
            scorer.add(*ask(["7"])[0][:1], Responses(rollouts=asked[0][1]), max_tokens=100)


def test_judge_and_checker_that_are_killed_or_stopped_change_no_reward(tmp_path: Path) -> None:
    """Real processes: the judge's server is stopped for a while, or killed and started anew; a checker is killed."""
    numbers = (range(24), range(24, 48))
    asked = [ask([TAGGED.format(f"{number} days in a week") for number in some]) for some in numbers]
    judge = Judge()
    try:
        with judged(judge, tmp_path / "calm") as scorer:
            calm = [rules(score(scorer, each)) for each in asked]
        assert {rule for groups in calm for rule in groups[0]} == {"judge", "none"}
        with judged(judge, tmp_path / "disturbed") as scorer, ThreadPoolExecutor(1) as thread:
            psutil.Process(judge.process.pid).suspend()
            said = thread.submit(score, scorer, asked[0])
            time.sleep(0.5)
            assert not said.done()
            psutil.Process(judge.process.pid).resume()
            assert rules(said.result(60)) == calm[0]
            judge.close()
            scorer.pool._workers[0].process.kill()
            said = thread.submit(score, scorer, asked[1])
            time.sleep(0.5)
            assert not said.done()
            judge.restart()
            assert rules(said.result(60)) == calm[1]
    finally:
        judge.close()


def test_judge_that_is_not_there_is_an_error_before_anything_is_scored(tmp_path: Path) -> None:
    judge = JudgeConfig(base_url=f"http://127.0.0.1:{free_port()}/v1", unavailable_timeout=0.1)
    threads = threading.active_count()
    with pytest.raises(ServerDown, match="was unavailable"):
        Scorer(RewardConfig(use_judge=True, judge=judge), tmp_path)
    assert threading.active_count() == threads


FAILS_ON_8 = """
def fussy(given):
    if given.verdict.extracted == "8":
        raise KeyError("eight")
    return 1
"""


def test_failing_function_is_counted_and_past_the_tolerance_stops_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(FAILS_ON_8)
    config = RewardConfig(
        weights=(("accuracy", 1.0), (f"{tmp_path}/mine.py:fussy", 0.5)), checker=ONE_WORKER, max_errors=3
    )
    with Scorer(config, tmp_path) as scorer:
        (group,) = score(scorer, ask([TAGGED.format(7), TAGGED.format(8), TAGGED.format(8)]))
        assert [reward.total for reward in group.rewards] == [1.5, 0.0, 0.0]
        assert compute_reward_metrics(group.rewards)["reward_errors_fussy"] == 2
        (said,) = caplog.messages
        assert said.startswith("reward fussy failed on 0, response 1 and counts as 0") and "'eight'" in said
        with pytest.raises(
            ValueError,
            match=r"(?s)4 of 5 rewards are bad, more than reward.max_errors=3.*fussy, the first: 0, resp",
        ):
            score(scorer, ask([TAGGED.format(8)] * 2))
    assert len(list((tmp_path / "rewards").glob("fussy-*.py"))) == 1


def test_long_wait_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody collects: an asynchronous run waits for what follows a group."""
    monkeypatch.setattr(scorer_module, "PATIENCE", 0.05)

    def respond(number: int, total: int) -> str:
        wait_until(lambda: caplog.messages, seconds=30)
        return EQUIVALENT

    with AddingTeacher() as server, judged(server, tmp_path) as scorer:
        server.respond = respond
        (prompt, rollouts), *_ = ask([TAGGED.format("days in a week")])
        future = scorer.score(prompt, Responses(rollouts=rollouts), max_tokens=100)
        assert rules([future.result(60)]) == [["judge"]] and not scorer._jobs
    assert "responses to 1 prompts wait for the judge, or for a function of" in caplog.messages[0]


def test_error_of_the_checker_reaches_those_who_wait(tmp_path: Path) -> None:
    with Scorer(RewardConfig(checker=ONE_WORKER), tmp_path) as scorer:
        scorer.pool.close()
        with pytest.raises(RuntimeError, match="VerifyPool is closed"):
            score(scorer, ask(["7"]))


def test_close_does_not_wait_for_the_judge_and_ends_who_does(tmp_path: Path) -> None:
    """As held-out questions wait in a thread of their own when a run fails: it would never end."""
    release = threading.Event()
    with AddingTeacher() as server, ThreadPoolExecutor(1) as thread:
        server.respond = lambda number, total: release.wait(60) and EQUIVALENT
        with judged(server, tmp_path) as scorer:
            groups = thread.submit(score, scorer, ask([TAGGED.format("days in a week")]))
            while not server.questions:
                threading.Event().wait(0.01)
            scorer.drop()
            with pytest.raises(CancelledError):
                groups.result(timeout=10)
        release.set()


def test_function_that_never_returns_does_not_keep_a_run_from_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "END_TIMEOUT", 0.1)
    release, entered = threading.Event(), threading.Event()
    with Scorer(RewardConfig(checker=ONE_WORKER), tmp_path) as scorer:
        scorer._functions["format"] = lambda given: float(entered.set() or release.wait(60))
        (prompt, rollouts), *_ = ask([TAGGED.format(7)])
        scorer.add(prompt, Responses(rollouts=rollouts), max_tokens=100)
        assert entered.wait(60)
    assert "has not returned" in caplog.text and scorer._thread.daemon
    release.set()
    scorer._thread.join(60)
    assert not scorer._thread.is_alive()
