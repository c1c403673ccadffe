"""Which node gets which process: groups stay together, nothing is counted twice, and what does not fit is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_omr.config import ParallelConfig
from rl.config import EngineConfig, EvalConfig, RLConfig, RolloutConfig
from rl.placement.plan import Node, Plan, build_plan, place_engine


def make_nodes(*gpus: int) -> list[Node]:
    return [Node(address=f"10.0.0.{number}", gpus=count) for number, count in enumerate(gpus, start=1)]


def make_config(
    *,
    trainers: int,
    tp: int = 1,
    cp: int = 1,
    engines: int = 1,
    engine_tp: int = 1,
    placement: Literal["separate", "colocated"] = "separate",
) -> RLConfig:
    return RLConfig(
        run="run",
        model="model",
        shards="shards",
        trainers=trainers,
        pack_length=65_536,
        parallel=ParallelConfig(tp=tp, cp=cp),
        engine=EngineConfig(num_engines=engines, tp=engine_tp),
        rollout=RolloutConfig(placement=placement),
    )


def hosts(addresses: Sequence[str]) -> list[int]:
    return [int(address.rpartition(".")[2]) for address in addresses]


def taken(plan: Plan, engine_tp: int) -> Counter[str]:
    counts = Counter(plan.trainers)
    for address in plan.engines:
        counts[address] += engine_tp
    return counts


@pytest.mark.parametrize(
    ("tp", "cp", "nodes_of_a_group"), [(4, 1, 1), (2, 4, 1), (8, 1, 1), (4, 2, 1), (8, 2, 2), (16, 1, 2)]
)
def test_groups_of_eight_nodes_of_eight_gpus_stay_together(tp: int, cp: int, nodes_of_a_group: int) -> None:
    """RL on 8 x 8 GPUs: half trains, the other half holds eight engines of four."""
    plan = build_plan(make_nodes(*[8] * 8), make_config(trainers=32, tp=tp, cp=cp, engines=8, engine_tp=4))
    assert [len(group) for group in plan.groups] == [tp * cp] * (32 // (tp * cp))
    assert {len(set(group)) for group in plan.groups} == {nodes_of_a_group}
    assert hosts(plan.trainers) == [1] * 8 + [2] * 8 + [3] * 8 + [4] * 8
    assert Counter(hosts(plan.engines)) == {5: 2, 6: 2, 7: 2, 8: 2}


def test_tensor_parallel_ranks_stay_together_where_a_group_is_cut() -> None:
    plan = build_plan(make_nodes(6, 6), make_config(trainers=8, tp=4, cp=2, engines=2))
    assert hosts(plan.trainers) == [1] * 4 + [2] * 4 and hosts(plan.engines) == [1, 1]
    narrow = build_plan(make_nodes(2, 2, 2, 1), make_config(trainers=4, tp=4))
    assert hosts(narrow.trainers) == [1, 1, 2, 2] and hosts(narrow.engines) == [4]


def test_small_gaps_are_filled_first_so_that_large_groups_fit() -> None:
    plan = build_plan(make_nodes(8, 4), make_config(trainers=2, tp=2, engines=1, engine_tp=8))
    assert hosts(plan.trainers) == [2, 2] and hosts(plan.engines) == [1]
    shared = build_plan(make_nodes(8), make_config(trainers=4, tp=4, engines=2, engine_tp=2))
    assert hosts(shared.trainers) + hosts(shared.engines) == [1] * 6


@pytest.mark.parametrize(
    ("nodes", "wish", "said"),
    [
        (
            (8, 8),
            dict(trainers=8, tp=4, engines=3, engine_tp=4),
            r"trainers=8 and engine.num_engines=3 x engine.tp=4 need 20 GPUs, and Ray sees 16: 8 on 10.0.0.1, 8 on "
            r"10.0.0.2; lower one or add nodes",
        ),
        (
            (8, 8),
            dict(trainers=2, engines=1, engine_tp=16 - 2),
            r"each of engine.num_engines=1 needs engine.tp=14 free GPUs on one node; beside trainers=2, 0 fit, and "
            r"there are left: 6 on 10.0.0.1, 8 on 10.0.0.2; lower",
        ),
        (
            (3, 3, 3, 1),
            dict(trainers=6, tp=3, engines=2, engine_tp=2),
            r"needs engine.tp=2 free GPUs on one node; beside trainers=6, 1 fit, and there are left: 0 on 10.0.0.1, 0 "
            r"on 10.0.0.2, 1 on 10.0.0.3, 1 on 10.0.0.4; lower",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_fields_and_nodes(
    nodes: tuple[int, ...], wish: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build_plan(make_nodes(*nodes), make_config(**wish))


def test_nodes_without_gpus_are_not_counted() -> None:
    config = make_config(trainers=2, engines=3)
    alone = build_plan(make_nodes(0), config)
    assert hosts(alone.trainers) == [1, 1] and hosts(alone.engines) == [1, 1, 1]
    several = build_plan(make_nodes(0, 0, 0), config)
    assert hosts(several.trainers) == [1, 1] and hosts(several.engines) == [2, 3, 2]
    assert several.describe() == ("10.0.0.1: 2 trainers; 10.0.0.2: 2 engines; 10.0.0.3: 1 engines")
    assert alone.describe() == "10.0.0.1: 2 trainers, 3 engines"
    evaluation = EvalConfig(model="", shards="", out="", engine=EngineConfig(num_engines=2))
    assert build_plan(make_nodes(0), evaluation).describe() == "10.0.0.1: 2 engines"


def test_engine_of_a_lost_node_goes_where_there_is_room() -> None:
    nodes = make_nodes(2, 2, 2)
    plan = build_plan(nodes, make_config(trainers=2, tp=2, engines=3, engine_tp=1))
    assert hosts(plan.engines) == [2, 2, 3]
    left = [node for node in nodes if node.address != "10.0.0.2"]
    first = place_engine(left, plan.trainers, plan.engines[2:], 1)
    assert first == "10.0.0.3"
    assert place_engine(left, plan.trainers, [*plan.engines[2:], first], 1) is None
    cpus = make_nodes(0, 0)
    assert place_engine(cpus[:1], ["10.0.0.1"], [], 1) == "10.0.0.1"  # the trainers' node is better than none


def test_colocated_engines_take_gpus_of_the_trainer_on_one_node() -> None:
    config = make_config(trainers=16, tp=4, engines=3, engine_tp=4, placement="colocated")
    plan = build_plan(make_nodes(8, 8), config)
    assert hosts(plan.trainers) == [1] * 8 + [2] * 8
    assert plan.shared == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)) and hosts(plan.engines) == [1, 1, 2]
    cpus = build_plan(make_nodes(0), make_config(trainers=2, engines=2, placement="colocated"))
    assert cpus.shared == ((0,), (1,)) and hosts(cpus.engines) == [1, 1]


def test_colocated_engines_that_the_trainer_has_no_room_for_are_refused() -> None:
    config = make_config(trainers=6, engines=3, engine_tp=2, placement="colocated")
    with pytest.raises(ValueError, match="engine.num_engines=3 of engine.tp=2 .* have room for 2 on 2 nodes"):
        build_plan(make_nodes(3, 3), config)
    with pytest.raises(ValueError, match="trainers=8 need as many GPUs, and Ray sees 6"):
        build_plan(make_nodes(6), make_config(trainers=8, engines=1, placement="colocated"))


@given(
    gpus=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    tp=st.sampled_from([1, 2, 4, 8]),
    cp=st.sampled_from([1, 2, 3]),
    groups=st.integers(1, 4),
    engines=st.integers(1, 4),
    engine_tp=st.sampled_from([1, 2, 4]),
)
def test_no_gpu_is_given_twice(
    gpus: list[int], tp: int, cp: int, groups: int, engines: int, engine_tp: int
) -> None:
    nodes = make_nodes(*gpus)
    config = make_config(trainers=groups * tp * cp, tp=tp, cp=cp, engines=engines, engine_tp=engine_tp)
    try:
        plan = build_plan(nodes, config)
    except ValueError:
        return
    assert len(plan.trainers) == config.trainers and len(plan.engines) == engines
    used = taken(plan, engine_tp)
    assert all(used[node.address] <= node.gpus for node in nodes)
