"""Every prompt is answered once, in order, by the current weights, even when engines die."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLForConditionalGeneration

from data_pipeline.failures import RankError
from data_pipeline.ray_session import start_ray, stop_ray
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.config import EngineConfig, RLConfig, SamplingConfig
from rl.placement.engines import build_engine_calls
from rl.placement.places import Placement
from rl.placement.transfer import WeightTransfer
from rl.prompts.stream import load_prompt_limits, read_prompts
from rl.rollout.calls import EngineDied, NoRoom, Report, Request
from rl.rollout.manager import RolloutManager
from rl.types import Prompt, Responses
from tests.helpers.echo_engines import EchoEngine, EchoEngines
from tests.helpers.groups import make_prompt
from tests.helpers.processes import find_processes, wait_until
from tests.helpers.weights import LocalTrainers

SAMPLING = SamplingConfig(n=2, max_tokens=8)


def some_prompts(count: int) -> list[Prompt]:
    return [make_prompt(number) for number in range(count)]


def versions(found: Sequence[Responses]) -> set[int]:
    return {rollout.oldest_version for responses in found for rollout in responses.rollouts}


def manage(park: EchoEngines, **options: int) -> RolloutManager[EchoEngine]:
    """Returns a manager without a thread: those who wait pump."""
    return RolloutManager(park.calls(), EngineConfig(**options), threaded=False)


def requests(count: int, n: int = 2, seed: int = 0) -> list[Request]:
    return [
        Request(prompt=p, sampling=SamplingConfig(n=n, max_tokens=8), seed=seed) for p in some_prompts(count)
    ]


@settings(deadline=None)
@given(
    num_prompts=st.integers(0, 40),
    num_engines=st.integers(1, 4),
    max_num_seqs=st.integers(1, 12),
    deaths=st.lists(st.integers(1, 12), max_size=3),
    seed=st.integers(0, 100),
)
def test_no_response_is_lost_or_doubled_when_engines_die(
    num_prompts: int, num_engines: int, max_num_seqs: int, deaths: list[int], seed: int
) -> None:
    park = EchoEngines(seed, deaths=deaths)
    manager = manage(park, num_engines=num_engines, max_num_seqs=max_num_seqs)
    manager.update_weights(7)
    told: list[tuple[Prompt, Responses]] = []
    found = manager.generate(
        some_prompts(num_prompts), SAMPLING, 5, on_reply=lambda *reply: told.append(reply)
    )
    assert sorted((int(prompt.ref.id), id(responses)) for prompt, responses in told) == [
        (i, id(responses)) for i, responses in enumerate(found)
    ]
    assert [[r.token_ids.tolist() for r in responses.rollouts] for responses in found] == [
        [[i, 5, 0], [i, 5, 1]] for i in range(num_prompts)
    ]
    assert versions(found) <= {7}
    assert manager.restarts == len(park.started) - num_engines <= len(set(deaths))
    assert {state.prompts for state in manager.states()} == {0}


def test_dead_engines_get_weights_later_where_the_trainer_is_busy() -> None:
    """A new engine needs the trainer; until then the others answer, and where none is left, the call says so."""
    park = EchoEngines(deaths=[2])
    manager = manage(park, num_engines=2, max_num_seqs=4)
    manager.update_weights(7)
    found = manager.generate(some_prompts(20), SAMPLING, 5, replaces_dead=False)
    assert [responses.rollouts[0].token_ids[0] for responses in found] == list(range(20))
    assert manager.counts == {"engine_restarts": 1, "engines_lost": 0}
    assert [(engine.version, len(engine.asked)) for engine in park.started if engine.alive][1] == (0, 0)
    manager.update_weights(8)
    assert len(park.started) == 3
    assert versions(manager.generate(some_prompts(20), SAMPLING, 5)) == {8}
    all_die = manage(EchoEngines(deaths=range(99)), num_engines=3)
    all_die.update_weights(1)
    with pytest.raises(EngineDied, match="engine"):
        all_die.generate(some_prompts(20), SAMPLING, 5, replaces_dead=False)
    assert all_die.states()[0].prompts == 0 and all_die._queue[0].future.cancelled()


def test_engines_share_the_prompts_evenly() -> None:
    park = EchoEngines()
    manage(park, num_engines=3, max_num_seqs=4).generate(some_prompts(60), SAMPLING, 0)
    counts = [len(engine.asked) for engine in park.started]
    assert sum(counts) == 60 and min(counts) >= 10
    few = EchoEngines()
    manage(few, num_engines=3, max_num_seqs=400).generate(some_prompts(9), SAMPLING, 0)
    assert [len(engine.asked) for engine in few.started] == [3, 3, 3]  # none idles while another holds all


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 16))
def test_engine_gets_the_next_prompt_as_soon_as_it_has_room(ns: list[int], count: int, slots: int) -> None:
    """No engine has more than one prompt over its slots and the look-ahead, and none has room while prompts wait."""
    park = EchoEngines()
    manager = manage(park, num_engines=count, max_num_seqs=slots)
    futures = [
        future for number, n in enumerate(ns) for future in manager.submit(requests(1, n, seed=number))
    ]
    limit = slots + max(1, slots // 8)
    while not all(future.done() for future in futures):
        loads = [sum(request.sampling.n for _, request in engine.open) for engine in park.started]
        waiting = sum(not future.done() for future in futures) - sum(len(e.open) for e in park.started)
        assert max(loads) < limit + max(ns)
        assert not waiting or min(loads) >= limit
        manager.pump_once(0)
    asked = [seed for engine in park.started for seed in engine.asked]
    assert sorted(asked) == list(range(len(ns)))


def test_prompts_are_asked_in_order_those_ahead_first_and_cancelled_ones_never() -> None:
    park = EchoEngines()
    manager = manage(park, num_engines=1, max_num_seqs=1)
    first = manager.submit(requests(6, 1))  # the engine takes two: it has one slot, and looks ahead by one
    ahead = manager.submit(requests(2, 1), ahead=True)
    assert first[4].cancel()
    manager.wait([*first, *ahead])
    assert park.started[0].asked == [0, 1, 6, 7, 2, 3, 5]
    assert [future.cancelled() for future in first] == [False] * 4 + [True, False]


def test_prompts_of_a_dead_engine_are_the_next_to_be_asked() -> None:
    park = EchoEngines(deaths=[1])
    manager = manage(park, num_engines=1, max_num_seqs=4)
    manager.wait(manager.submit(requests(12, 1)))
    assert [engine.asked for engine in park.started] == [[0, 1, 2, 3, 4], list(range(12))]


def test_engines_that_keep_dying_stop_the_run_and_name_the_prompts() -> None:
    manager = manage(EchoEngines(deaths=range(99)), num_engines=2, max_num_seqs=4)
    futures = manager.submit(requests(3))
    with pytest.raises(RuntimeError, match=r"4 engines died.*asked \d+ to \d+"):
        manager.generate(some_prompts(8), SAMPLING, 0)
    assert all(isinstance(future.exception(), RankError) for future in futures)
    with pytest.raises(RuntimeError, match="4 engines died"):
        manager.submit(requests(1))


def test_prompt_that_kills_its_engines_stops_the_run_although_others_are_answered() -> None:
    class Poisoned(EchoEngine):
        def answer(
            self, prompts: Sequence[Prompt], sampling: SamplingConfig, step_seed: int
        ) -> list[Responses]:
            park.kill(self)
            return super().answer(prompts, sampling, step_seed)

    park = EchoEngines(kind=Poisoned)  # dies with each answer, and what else it was asked
    manager = manage(park, num_engines=9, max_num_seqs=4)
    with pytest.raises(
        RuntimeError, match="4 engines died with the same prompt, allowed 3; the last was asked"
    ):
        manager.generate(some_prompts(200), SAMPLING, 0)


def test_engine_that_died_between_steps_is_replaced_with_the_new_weights() -> None:
    park = EchoEngines()
    manager = manage(park, num_engines=2, max_num_seqs=4)
    park.started[0].alive = False
    manager.update_weights(3)
    assert manager.restarts == 1
    assert versions(manager.generate(some_prompts(8), SAMPLING, 0)) == {3}


def test_engines_that_die_in_an_update_are_replaced_until_too_many_have() -> None:
    park = EchoEngines(deaths_in_updates=[2, 4])  # of three engines the second, then the one in its place
    manager = manage(park, num_engines=3, max_num_seqs=4)
    manager.update_weights(5)
    alive = [engine.alive for engine in park.started]
    assert manager.restarts == 2 and alive == [True, False, True, False, True]
    assert versions(manager.generate(some_prompts(8), SAMPLING, 0)) == {5}
    dying = EchoEngines(deaths_in_updates=range(99))
    with pytest.raises(RuntimeError, match=r"4 engines died.*the last was given weights \(engine \d"):
        manage(dying, num_engines=2, max_num_seqs=4).update_weights(1)


def test_run_goes_on_without_engines_for_which_no_node_has_room(caplog: pytest.LogCaptureFixture) -> None:
    park = EchoEngines(deaths=[2], deaths_in_updates=[2])
    park.room = 3
    manager = manage(park, num_engines=3, max_num_seqs=4)
    manager.update_weights(5)  # the second dies
    found = manager.generate(some_prompts(12), SAMPLING, 1)  # another dies
    assert len(found) == 12 and versions(found) == {5}
    assert (manager.restarts, manager.lost) == (0, 2)
    assert sorted(state.state for state in manager.states()) == ["idle", "lost", "lost"]
    assert "the run goes on with 1 engines: no node has room" in caplog.text
    manager.update_weights(6)
    assert (
        caplog.text.count("the run goes on with 1 engines") == 1 and manager.lost == 2
    )  # it was tried again
    park.room = 4
    manager.update_weights(7)
    assert (manager.restarts, manager.lost) == (1, 1)
    assert versions(manager.generate(some_prompts(12), SAMPLING, 1)) == {7} and park.started[3].asked
    for engine in park.started:
        engine.alive = False
    with pytest.raises(NoRoom):
        manager.update_weights(8)


def test_nothing_waits_for_a_place_that_is_being_found() -> None:
    park = EchoEngines()
    found, given_up = threading.Event(), threading.Event()

    def start() -> EchoEngine:
        if len(park.started) >= 3:
            assert found.wait(60)
            if given_up.is_set():
                raise NoRoom("the run ends")
        return park.calls().start()

    def give_up() -> None:
        given_up.set()
        found.set()

    manager = RolloutManager(
        replace(park.calls(), start=start, give_up=give_up), EngineConfig(num_engines=3, max_num_seqs=4)
    )
    with closing(manager):
        manager.update_weights(1)
        for engine in park.started[:2]:
            park.kill(engine)
        wait_until(lambda: len(manager._members) == 1)
        assert versions(manager.generate(some_prompts(20), SAMPLING, 0)) == {1}
        assert [state.state for state in manager.states()] == ["starting", "starting", "idle"]
        assert len(park.started) == 3
        found.set()
        wait_until(lambda: len(manager._members) == 3)
        assert manager.restarts == 2
        manager.update_weights(2)
        assert versions(manager.generate(some_prompts(20), SAMPLING, 0)) == {2}
        assert all(engine.asked for engine in park.started[3:]) and manager.lost == 0
        found.clear()
        park.kill(park.started[2])
        wait_until(lambda: len(manager._members) == 2)
    assert [thread for thread in threading.enumerate() if thread.name == "start-engines"] == []
    assert len(park.started) == 5 and not any(engine.alive for engine in park.started)


def test_first_update_waits_for_engines_in_the_place_of_those_that_died() -> None:
    park = EchoEngines(deaths_in_updates=[1, 2])

    def start() -> EchoEngine:
        time.sleep(0.2 if len(park.started) >= 2 else 0)
        return park.calls().start()

    with closing(RolloutManager(replace(park.calls(), start=start), EngineConfig(num_engines=2))) as manager:
        manager.update_weights(1)
        assert manager.restarts == 2 and [engine.version for engine in park.started] == [1] * 4


def test_lost_node_may_have_had_all_engines_but_one() -> None:
    park = EchoEngines(deaths_in_updates=range(1, 6))
    park.room = 6
    manager = manage(park, num_engines=6, max_num_seqs=4)
    manager.update_weights(5)
    assert manager.lost == 5 and versions(manager.generate(some_prompts(8), SAMPLING, 1)) == {5}


def test_engine_without_a_token_for_too_long_is_replaced_and_those_that_work_idle_or_update_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By a clock that the test sets. Engine 0 works, 1 hangs, 2 has nothing to do, and in the end 0 is updated."""
    now = [0.0]
    news: list[tuple[EchoEngine, Report | Exception]] = []
    park = EchoEngines()
    calls = replace(park.calls(), clock=lambda: now[0], poll=lambda seconds: [news.pop()] if news else [])
    manager = RolloutManager(calls, EngineConfig(num_engines=3, token_timeout=60), threaded=False)
    manager.update_weights(1)
    for engine in park.started:
        news.append((engine, engine.report()))
        manager.pump_once(0)
    futures = manager.submit(requests(2))
    works, hangs, idles = park.started
    now[0] += 1_000  # all are stopped, and go on
    manager.pump_once(0)
    assert manager.restarts == 0
    for _ in range(7):
        now[0] += 10
        works.finished += 1  # it makes tokens
        news.append((works, works.report()))
        manager.pump_once(0)
    assert (
        manager.restarts == 1 and len(park.started) == 4 and not hangs.alive and works.alive and idles.alive
    )
    assert (
        "engine 1 was asked 1 to 1 and died: it made no token for 60 s (engine.token_timeout)" in caplog.text
    )
    assert [future.done() for future in futures] == [False, False] and len(idles.open) == 1
    states = {state.number: state.state for state in manager.states()}
    assert states == {0: "generating", 1: "starting", 2: "generating"}
    assert manager.states()[0].tokens_per_second == pytest.approx(0.3)


def test_seconds_without_a_prompt_are_the_mean_over_engines() -> None:
    now, park = [0.0], EchoEngines()
    config = EngineConfig(num_engines=2, max_num_seqs=4)
    manager = RolloutManager(replace(park.calls(), clock=lambda: now[0]), config, threaded=False)
    manager.update_weights(0)
    now[0] = 10.0
    assert manager.take_idle() == 10
    now[0] = 13.0
    (future,) = manager.submit(requests(1))
    now[0] = 20.0
    assert manager.take_idle() == (3 + 10) / 2
    while not future.done():
        manager.pump_once(0)
    now[0] = 21.0
    assert manager.take_idle() == 1


def test_weights_change_while_engines_generate() -> None:
    """Those that start meanwhile get them when somebody waits, and nobody asks them before."""
    park = EchoEngines()
    ready = set[EchoEngine]()
    manager = RolloutManager(
        replace(park.calls(), has_started=ready.__contains__),
        EngineConfig(num_engines=2, max_num_seqs=4),
        threaded=False,
    )
    manager.update_weights(1)  # waits for both
    ready |= set(park.started)
    futures = manager.submit(requests(40))
    park.kill(park.started[0])
    manager.pump_once()
    manager.update_weights(2)
    assert [engine.version for engine in park.started] == [1, 2, 0] and park.started[2].asked == []
    assert sum(len(engine.open) for engine in park.started[1:]) > 0
    ready |= set(park.started)
    manager.wait(futures)
    assert [engine.version for engine in park.started] == [1, 2, 2] and park.started[2].asked
    assert versions([future.result() for future in futures]) == {2}


def test_close_ends_what_other_threads_wait_for_and_the_thread_that_pumps() -> None:
    park, before = EchoEngines(), threading.enumerate()
    silent = replace(park.calls(), poll=lambda seconds: time.sleep(0.01) or [])
    manager = RolloutManager(silent, EngineConfig(num_engines=2))
    failed: list[BaseException] = []

    def generate() -> None:
        with pytest.raises(EngineDied, match="closed") as caught:
            manager.generate(some_prompts(3), SAMPLING, 0)
        failed.append(caught.value)

    waiting = threading.Thread(target=generate)
    waiting.start()
    wait_until(lambda: any(engine.asked for engine in park.started))
    manager.close()
    waiting.join(10)
    assert failed and not any(engine.alive for engine in park.started)
    assert set(threading.enumerate()) <= set(before)
    with pytest.raises(EngineDied, match="closed"):
        manager.submit(requests(1))


def test_fault_that_is_no_death_of_an_engine_reaches_all_who_wait() -> None:
    """One of this program, say: another engine would have it, too. What vLLM raises is a death, see test_server.py."""
    park = EchoEngines()
    broken = replace(
        park.calls(),
        poll=lambda seconds: [(park.started[0], LookupError("a fault"))] if park.started[0].open else [],
    )
    manager = RolloutManager(broken, EngineConfig(num_engines=2, max_num_seqs=1))
    futures = manager.submit(requests(20))
    assert {str(future.exception(timeout=60)) for future in futures} == {"a fault"}
    with pytest.raises(LookupError):
        manager.update_weights(1)
    manager.close()


@pytest.mark.heavy
@pytest.mark.slow
def test_ray_engine_killed_while_it_generates_is_replaced_without_loss(tiny_hf: Path, tmp_path: Path) -> None:
    """Real Ray, real vLLM in bf16."""
    write_shards(digit_samples("test", 12, 0), tmp_path / "shards")
    config = RLConfig(
        run=str(tmp_path / "run"),
        model=str(tiny_hf),
        shards=str(tmp_path / "shards"),
        prompts_per_step=12,
        engine=EngineConfig(
            precision="bf16",
            max_model_len=512,
            max_num_seqs=16,
            cpu_kv_cache_gib=0.1,
            weight_transfer="collective",
            transfer_timeout=60,
        ),
        sampling=SamplingConfig(n=4, max_tokens=200),
    )
    prompts = [prompt for prompt, _ in read_prompts(config.shards, load_prompt_limits(config))]
    start_ray()
    try:
        trainers = LocalTrainers(changed_weights(tiny_hf), config.engine)
        transfer = WeightTransfer(trainers, config.engine)
        calls = build_engine_calls(config, Placement(config), update=transfer.update, resend=transfer.resend)
        manager = RolloutManager(calls, config.engine)
        manager.update_weights(3)
        undisturbed = manager.generate(prompts, config.sampling, 1)
        victims = find_processes("ray::EngineServer")
        disturbed = manager.generate(  # the new engine gets the weights by a group of its own
            prompts, config.sampling, 1, on_reply=lambda *_: [victims.pop().kill() for _ in list(victims)]
        )
        assert (manager.restarts, victims) == (1, [])
        assert len(disturbed) == len(prompts) and all(len(found.rollouts) == 4 for found in disturbed)
        assert versions(disturbed) == {3}
        assert numbers_of(disturbed) == numbers_of(undisturbed)  # the same draws by the same weights
        futures = manager.submit([Request(prompt=p, sampling=config.sampling, seed=1) for p in prompts])
        futures[0].result(60)
        manager.update_weights(4)  # the others are half done, or wait
        manager.wait(futures)
        rollouts = [rollout for future in futures for rollout in future.result().rollouts]
        assert {r.versions[0][0] for r in rollouts} == {3, 4} and {len(r.versions) for r in rollouts} == {
            1,
            2,
        }
        assert all(sum(count for _, count in r.versions) == len(r.token_ids) for r in rollouts)
        (state,) = manager.states()
        assert (state.state, state.version, state.prompts, state.running) == ("idle", 4, 0, 0)
        assert state.tokens >= sum(len(r.token_ids) for found in disturbed for r in found.rollouts) / 2
        assert all(is_loopback(address) for address in listening_addresses())
        manager.close()
    finally:
        stop_ray()


def numbers_of(found: Sequence[Responses]) -> list[list[tuple[list[int], list[float]]]]:
    return [[(r.token_ids.tolist(), r.logprobs.tolist()) for r in responses.rollouts] for responses in found]


def listening_addresses() -> list[str]:
    """Where this process and all that it started accept connections."""
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    sockets = [connection for process in family for connection in process.net_connections(kind="inet")]
    addresses = [connection.laddr.ip for connection in sockets if connection.status == psutil.CONN_LISTEN]
    assert addresses
    return addresses


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def changed_weights(folder: Path) -> list[tuple[str, torch.Tensor]]:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    return [(name, tensor * 1.1) for name, tensor in model.state_dict().items()]
