"""The pool of checkers: a hostile answer costs its own deadline and nothing else."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from data_pipeline.verify.check import Verdict, check_answer
from data_pipeline.verify.config import CheckerConfig
from data_pipeline.verify.pool import VerifyPool
from tests.helpers.processes import wait_until


def tagged(answer: str) -> str:
    return f"<think>r</think><answer>{answer}</answer>"


MIXED = [  # in both modes the first two, and only they, are right and need math-verify
    (tagged(r"$\sqrt{12}$"), r"$2\sqrt{3}$"),
    (tagged("$x^2-1$"), "$(x+1)(x-1)$"),
    (tagged("8"), "9"),
    (tagged("B"), "B"),
    (tagged("$3x$"), "$4x$"),
    ("nothing at all", "5"),
]
RIGHT = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
HOSTILE = {
    "released": [
        "9^9^9^9",
        r"$9^{9^{9^9}}$",
        "$" + r"\frac{1}{" * 150_000 + "1" + "}" * 150_000 + "$",
    ],  # 1.5 MB
    "strict": [r"9^{9^{9^9}}", r"9^{9^{9^9}}+1", r"x^2 + 9^{9^{9^{9}}}"],
}


def checker_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [
        p for p in children if p.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(p.cmdline())
    ]


@pytest.fixture(scope="module", params=HOSTILE)
def pool(request):
    with VerifyPool(CheckerConfig(workers=2, deadline=3.0, mode=request.param)) as pool:
        yield pool


def checked(pairs: list[tuple[str, str]], pool: VerifyPool) -> list[Verdict]:
    return [check_answer(*pair, pool.config.mode) for pair in pairs]


def test_verdicts_equal_those_of_this_process_in_order(pool):
    pairs = MIXED * 20
    assert pool.check_many(pairs) == checked(pairs, pool)
    assert [verdict.accuracy for verdict in pool.check_many(MIXED)] == RIGHT


def test_workers_use_the_mode_of_the_config():
    hedge, root = (tagged("A or B"), "A"), (tagged(r"\sqrt{12}"), r"2\sqrt{3}")
    for mode, right in {"strict": [0, 1], "released": [1, 0]}.items():
        with VerifyPool(CheckerConfig(workers=1, deadline=10.0, mode=mode)) as pool:
            assert [verdict.accuracy for verdict in pool.check_many([hedge, root])] == right


def test_no_responses_give_no_verdicts(pool):
    assert pool.check_many([]) == []


def test_hostile_answers_time_out_and_others_are_checked(pool):
    before = pool.counts.copy()
    hostile = [(tagged(text), "3") for text in HOSTILE[pool.config.mode]]
    verdicts = pool.check_many([hostile[0], *MIXED, hostile[1], *MIXED, hostile[2]])
    assert [verdicts[i].decided_by for i in (0, 7, 14)] == ["timeout"] * 3
    assert [verdicts[i].accuracy for i in (0, 7, 14)] == [0.0] * 3
    assert verdicts[0].format == 1.0  # the answer counts as wrong, its format still counts
    assert verdicts[1:7] == verdicts[8:14] == checked(MIXED, pool)
    assert (pool.counts - before)["timeout"] == 3
    wait_until(lambda: len(checker_processes()) == 2)  # the last replacement has started


def test_hostile_answer_in_a_batch_does_not_fail_the_others(pool):
    tower = (tagged(HOSTILE[pool.config.mode][1]), "3")
    verdicts = pool.check_many([*MIXED * 5, tower, *MIXED * 5])
    assert [verdict.decided_by for verdict in verdicts].count("timeout") == 1
    assert verdicts[: 5 * len(MIXED)] == verdicts[5 * len(MIXED) + 1 :] == checked(MIXED * 5, pool)


@pytest.mark.slow
def test_deep_and_long_answers_are_wrong_and_harmless():
    texts = [
        "9^9^9^9",
        "(" * 450 + "1" + ")" * 450,
        r"\frac{1}{" * 90 + "1" + "}" * 90,
        r"\sqrt{" * 140 + "2" + "}" * 140,
        "-" * 900 + "1",
        "1" * 999,
        "x^" * 400 + "x",
        "{" * 450 + "1" + "}" * 450,
        "1e999999999",
        "$" + r"\frac{1}{" * 150_000 + "1" + "}" * 150_000 + "$",
        "((" * 500_000,
    ]
    with VerifyPool(CheckerConfig(workers=2, deadline=2.0)) as pool:
        verdicts = pool.check_many([(tagged(text), r"\frac{x}{3}") for text in texts] + MIXED)
        assert verdicts[len(texts) :] == checked(MIXED, pool)
    assert not any(verdict.accuracy for verdict in verdicts[: len(texts)])


@pytest.mark.slow
def test_answer_that_crashes_every_worker_is_an_error():
    with VerifyPool(CheckerConfig(workers=1, deadline=60.0, mode="released"), memory_gib=0.25) as small:
        too_big = tagged("(" * 150_000_000)  # does not fit into the worker
        assert small.check_many([(too_big, "3"), *MIXED])[0].decided_by == "error"
        assert small.counts["error"] == 1
        assert small.check_many(MIXED) == checked(MIXED, small)


def test_worker_that_dies_idle_is_replaced(pool):
    # one that dies while it starts is an error
    wait_until(lambda: pool.check_many(MIXED) and all(worker.is_ready for worker in pool._workers))
    before = pool.counts.copy()
    for process in checker_processes():
        process.kill()
    assert pool.check_many(MIXED) == checked(MIXED, pool)
    assert (pool.counts - before)["error"] == 0


def test_stopped_worker_is_replaced_with_a_report(caplog, monkeypatch):
    """What it was to check is checked by another."""
    monkeypatch.setattr("data_pipeline.verify.pool._SILENCE", 0.5)
    with VerifyPool(CheckerConfig(workers=1)) as pool:
        assert pool.check_many(MIXED) == checked(MIXED, pool)
        (stopped,) = pool._workers
        psutil.Process(stopped.process.pid).suspend()
        assert pool.check_many(MIXED) == checked(MIXED, pool)
        assert not psutil.pid_exists(stopped.process.pid) and pool.counts["error"] == 0
    assert f"for process {stopped.process.pid}, which is at the answer" in caplog.text


def test_time_in_which_a_worker_is_stopped_does_not_count(pool):
    """A response is not wrong because its checker was suspended for longer than the deadline."""
    wait_until(lambda: pool.check_many(MIXED) and all(worker.is_ready for worker in pool._workers))
    before, processes = pool.counts.copy(), checker_processes()
    for process in processes:
        process.suspend()
    with ThreadPoolExecutor(1) as thread:
        said = thread.submit(pool.check_many, MIXED)
        time.sleep(1.5 * pool.config.deadline)
        assert not said.done()
        for process in processes:
            process.resume()
        assert said.result() == checked(MIXED, pool)
    assert processes == checker_processes() and (pool.counts - before)["timeout"] == 0


def test_worker_that_dies_while_it_starts_is_replaced():
    with VerifyPool(CheckerConfig(workers=1)) as pool:
        pool._workers[0].process.kill()
        assert pool.check_many(MIXED) == checked(MIXED, pool)


def test_threads_share_a_pool(pool):
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(pool.check_many, [MIXED] * 8))
    assert all(result == results[0] for result in results)
    assert [v.accuracy for v in results[0]] == RIGHT


def test_closed_pool_has_no_processes_and_refuses_work():
    others = {p.pid for p in checker_processes()}
    with VerifyPool(CheckerConfig(workers=1)) as pool:
        pool.check_many(MIXED)  # by now it has started
        assert len({p.pid for p in checker_processes()} - others) == 1
    assert {p.pid for p in checker_processes()} <= others
    with pytest.raises(RuntimeError, match="closed"):
        pool.check_many(MIXED)
    pool.close()


def test_worker_ends_when_its_pool_is_gone():
    with VerifyPool(CheckerConfig(workers=1)) as pool:
        (worker,) = pool._workers
        assert worker.connection.poll(60)  # "ready", which stays unread
        worker.connection.close()
        worker.process.join(10)
        assert worker.process.exitcode == 0


def test_worker_that_cannot_start_is_an_error():
    with (
        VerifyPool(CheckerConfig(workers=1, deadline=1.0), memory_gib=0.02) as pool,
        pytest.raises(RuntimeError, match="memory_gib"),
    ):
        pool.check_many(MIXED)


def test_interrupted_pool_is_closed(monkeypatch):
    others = {p.pid for p in checker_processes()}
    with VerifyPool(CheckerConfig(workers=1)) as pool:
        pool.check_many(MIXED)
        with monkeypatch.context() as patch:
            patch.setattr("data_pipeline.verify.pool.wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.check_many(MIXED)
        assert {p.pid for p in checker_processes()} <= others
        with pytest.raises(RuntimeError, match="closed"):
            pool.check_many(MIXED)


def interrupt(connections: list, timeout: float) -> list:
    raise KeyboardInterrupt
