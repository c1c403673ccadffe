"""Every prompt is answered once, in order, by the current weights, even when engines die."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLForConditionalGeneration

from data_pipeline.ray_session import start_ray, stop_ray
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.config import EngineConfig, RLConfig, SamplingConfig
from rl.placement.actors import build_engine_calls
from rl.placement.places import Placement
from rl.placement.transfer import WeightTransfer
from rl.prompts.stream import load_prompt_limits, read_prompts
from rl.rollout.manager import EngineDied, NoRoom, RolloutManager
from rl.types import Prompt, Responses
from tests.helpers.echo_engines import EchoEngines
from tests.helpers.groups import make_prompt
from tests.helpers.processes import wait_for_process
from tests.helpers.weights import LocalTrainers

SAMPLING = SamplingConfig(n=2, max_tokens=8)


def some_prompts(count: int) -> list[Prompt]:
    return [make_prompt(number) for number in range(count)]


def versions(found: Sequence[Responses]) -> set[int]:
    return {rollout.oldest_version for responses in found for rollout in responses.rollouts}


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
    manager = RolloutManager(park.calls(), EngineConfig(num_engines=num_engines, max_num_seqs=max_num_seqs))
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
    assert all(reply.size * SAMPLING.n <= max(max_num_seqs, SAMPLING.n) for reply in park.asked)


def test_dead_engines_are_replaced_later_where_the_trainer_is_busy() -> None:
    """A new engine needs the trainer; until then the others answer, and where none is left, the call says so."""
    park = EchoEngines(deaths=[2])
    manager = RolloutManager(park.calls(), EngineConfig(num_engines=2, max_num_seqs=4))
    manager.update_weights(7)
    found = manager.generate(some_prompts(20), SAMPLING, 5, replaces_dead=False)
    assert [responses.rollouts[0].token_ids[0] for responses in found] == list(range(20))
    assert (len(park.started), manager.counts) == (2, {"engine_restarts": 0, "engines_lost": 0})
    manager.update_weights(8)
    assert (len(park.started), manager.counts) == (3, {"engine_restarts": 1, "engines_lost": 0})
    assert versions(manager.generate(some_prompts(20), SAMPLING, 5)) == {8}
    all_die = RolloutManager(EchoEngines(deaths=range(99)).calls(), EngineConfig(num_engines=3))
    with pytest.raises(EngineDied, match="engine"):
        all_die.generate(some_prompts(20), SAMPLING, 5, replaces_dead=False)
    assert all_die.restarts == 0


def test_engines_share_the_prompts_evenly() -> None:
    park = EchoEngines()
    manager = RolloutManager(park.calls(), EngineConfig(num_engines=3, max_num_seqs=4))
    manager.generate(some_prompts(60), SAMPLING, 0)
    counts = [sum(reply.size for reply in park.asked if reply.engine is engine) for engine in park.started]
    assert sum(counts) == 60 and min(counts) >= 10
    few = EchoEngines()
    RolloutManager(few.calls(), EngineConfig(num_engines=3, max_num_seqs=400)).generate(
        some_prompts(9), SAMPLING, 0
    )
    assert [reply.size for reply in few.asked] == [3, 3, 3]  # no engine idles while another holds all


def test_engines_that_keep_dying_stop_the_run_and_name_the_prompts() -> None:
    manager = RolloutManager(
        EchoEngines(deaths=range(99)).calls(), EngineConfig(num_engines=2, max_num_seqs=4)
    )
    with pytest.raises(RuntimeError, match=r"4 engines died.*asked \d+ to \d+"):
        manager.generate(some_prompts(8), SAMPLING, 0)


def test_engine_that_died_between_steps_is_replaced_with_the_new_weights() -> None:
    park = EchoEngines()
    manager = RolloutManager(park.calls(), EngineConfig(num_engines=2, max_num_seqs=4))
    park.started[0].alive = False
    manager.update_weights(3)
    assert manager.restarts == 1
    assert versions(manager.generate(some_prompts(8), SAMPLING, 0)) == {3}


def test_engines_that_die_in_an_update_are_replaced_until_too_many_have() -> None:
    park = EchoEngines(deaths_in_updates=[2, 4])  # of three engines the second, then the one in its place
    manager = RolloutManager(park.calls(), EngineConfig(num_engines=3, max_num_seqs=4))
    manager.update_weights(5)
    assert manager.restarts == 2 and [engine.alive for engine in park.started] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert versions(manager.generate(some_prompts(8), SAMPLING, 0)) == {5}
    dying = EchoEngines(deaths_in_updates=range(99))
    with pytest.raises(RuntimeError, match=r"4 engines died.*the last was given weights \(engine \d"):
        RolloutManager(dying.calls(), EngineConfig(num_engines=2, max_num_seqs=4)).update_weights(1)


def test_run_goes_on_without_engines_for_which_no_node_has_room(caplog: pytest.LogCaptureFixture) -> None:
    park = EchoEngines(deaths=[2], deaths_in_updates=[2])
    park.room = 3
    manager = RolloutManager(park.calls(), EngineConfig(num_engines=3, max_num_seqs=4))
    manager.update_weights(5)  # the second dies
    found = manager.generate(some_prompts(12), SAMPLING, 1)  # another dies
    assert len(found) == 12 and versions(found) == {5}
    assert (manager.restarts, manager.lost, len(manager._engines)) == (0, 2, 1)
    assert "the run goes on with 1 engines: no node has room" in caplog.text
    manager._engines[next(iter(manager._engines))].alive = False
    with pytest.raises(NoRoom):
        manager.update_weights(6)


def test_lost_node_may_have_had_all_engines_but_one() -> None:
    park = EchoEngines(deaths_in_updates=range(1, 6))
    park.room = 6
    manager = RolloutManager(park.calls(), EngineConfig(num_engines=6, max_num_seqs=4))
    manager.update_weights(5)
    assert manager.lost == 5 and versions(manager.generate(some_prompts(8), SAMPLING, 1)) == {5}


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
        update = WeightTransfer(trainers, config.engine).update
        calls = build_engine_calls(config, Placement(config), update=update)
        victims: list[object] = []

        def kill_once_then_wait(replies: Sequence[object]) -> object:
            if victims:
                wait_for_process("ray::Engine.generate")
                calls.stop(victims.pop())
            return calls.wait(replies)

        manager = RolloutManager(replace(calls, wait=kill_once_then_wait), config.engine)
        manager.update_weights(3)
        undisturbed = manager.generate(prompts, config.sampling, 1)
        victims.append(manager._engines[0])
        disturbed = manager.generate(
            prompts, config.sampling, 1
        )  # the new engine gets the weights by a group of its own
        assert (manager.restarts, victims) == (1, [])
        assert len(disturbed) == len(prompts) and all(len(found.rollouts) == 4 for found in disturbed)
        assert versions(disturbed) == {3}
        assert numbers_of(disturbed) == numbers_of(undisturbed)  # the same draws by the same weights
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
