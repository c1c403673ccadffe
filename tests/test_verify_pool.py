"""The pool of checkers: hostile answers cost their deadline, and only theirs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from data_pipeline.verify import check_answer
from data_pipeline.verify_pool import VerifyPool


def tagged(answer: str) -> str:
    return f"<think>r</think><answer>{answer}</answer>"


MIXED = [
    (tagged("1/2"), "0.5"),
    (tagged("8"), "9"),
    (tagged("B"), "B"),
    (tagged("3 and 4"), "3"),
    ("nothing at all", "5"),
    (tagged(r"\frac{3}{4}"), "0.75"),
]
TOWERS = ["9^9^9^9", r"$9^{9^{9^9}}$"]


def checker_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [
        p for p in children if p.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(p.cmdline())
    ]


@pytest.fixture(scope="module")
def pool():
    with VerifyPool(workers=2, deadline=3.0) as pool:
        yield pool


def test_agrees_with_checking_in_process_and_keeps_the_order(pool):
    pairs = MIXED * 20
    assert pool.check_many(pairs) == [check_answer(response, answer) for response, answer in pairs]


def test_nothing_to_check(pool):
    assert pool.check_many([]) == []


def test_hostile_answers_cost_their_deadline_and_the_others_are_served(pool):
    before = pool.counts.copy()
    hostile = [(tagged(tower), "3") for tower in TOWERS]
    hostile.append(
        (tagged("$" + r"\frac{1}{" * 150_000 + "1" + "}" * 150_000 + "$"), "0.5")
    )  # 1.5 MB of LaTeX
    verdicts = pool.check_many([hostile[0], *MIXED, hostile[1], *MIXED, hostile[2]])
    assert [verdicts[i].decided_by for i in (0, 7, 14)] == ["timeout"] * 3
    assert [verdicts[i].accuracy for i in (0, 7, 14)] == [0.0] * 3
    assert verdicts[0].format == 1.0  # the answer is judged wrong, its form still counts
    assert verdicts[1:7] == verdicts[8:14] == [check_answer(*pair) for pair in MIXED]
    assert (pool.counts - before)["timeout"] == 3
    while len(checker_processes()) != 2:  # the pool is whole again, once the last replacement has started
        time.sleep(0.05)


def test_an_answer_that_kills_every_worker_is_an_error():
    with VerifyPool(workers=1, deadline=60.0, memory_gib=0.25) as small:
        too_big = tagged("(" * 150_000_000)  # does not fit into the worker
        assert small.check_many([(too_big, "3"), *MIXED])[0].decided_by == "error"
        assert small.counts["error"] == 1
        assert small.check_many(MIXED) == [check_answer(*pair) for pair in MIXED]


def test_a_worker_that_dies_idle_costs_nothing(pool):
    pool.check_many(MIXED)
    before = pool.counts.copy()
    for process in checker_processes():
        process.kill()
    assert pool.check_many(MIXED) == [check_answer(*pair) for pair in MIXED]
    assert (pool.counts - before)["error"] == 0


def test_serves_several_threads(pool):
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(pool.check_many, [MIXED] * 8))
    assert all(result == results[0] for result in results)
    assert [v.accuracy for v in results[0]] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def test_close_ends_the_processes_and_says_so():
    others = {p.pid for p in checker_processes()}
    with VerifyPool(workers=1, deadline=5.0) as pool:
        pool.check_many(MIXED)  # by now it has started
        assert len({p.pid for p in checker_processes()} - others) == 1
    assert {p.pid for p in checker_processes()} <= others
    with pytest.raises(RuntimeError, match="closed"):
        pool.check_many(MIXED)
    pool.close()


def test_a_worker_whose_pool_went_without_using_it_ends_quietly():
    with VerifyPool(workers=1, deadline=5.0) as pool:
        (worker,) = pool._workers
        assert worker.connection.poll(60)  # "ready", which nobody reads
        worker.connection.close()
        worker.process.join(10)
        assert worker.process.exitcode == 0


def test_workers_that_cannot_start_are_an_error_not_a_loop():
    with (
        VerifyPool(workers=1, deadline=1.0, memory_gib=0.02) as pool,
        pytest.raises(RuntimeError, match="memory_gib"),
    ):
        pool.check_many(MIXED)


def test_an_interrupted_pool_is_closed_rather_than_confused(monkeypatch):
    others = {p.pid for p in checker_processes()}
    with VerifyPool(workers=1, deadline=5.0) as pool:
        pool.check_many(MIXED)
        with monkeypatch.context() as patch:
            patch.setattr("data_pipeline.verify_pool.wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.check_many(MIXED)
        assert {p.pid for p in checker_processes()} <= others
        with pytest.raises(RuntimeError, match="closed"):
            pool.check_many(MIXED)


def interrupt(connections: list) -> list:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("workers", "deadline"), [(0, 1.0), (1, 0.0)])
def test_refuses_settings_that_cannot_work(workers, deadline):
    with pytest.raises(ValueError, match="workers="):
        VerifyPool(workers=workers, deadline=deadline)
