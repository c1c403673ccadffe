"""Holds the places of a run's processes on Ray's nodes: a placement group for each trainer group and each engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config import EvalConfig, RLConfig
from rl.placement.plan import Node, build_plan, place_engine
from rl.rollout.calls import NoRoom

WAIT_SECONDS = 60.0
"""Limit of the wait for a place: free ones are given at once, and those of a process that died within seconds."""
LOOK_SECONDS = 1.0
"""After which the wait looks whether the run ends."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place for one actor on a node."""

    address: str
    num_gpus: int
    group: PlacementGroup
    bundle: int
    env: Mapping[str, str] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()  # of the trainer, whose place this is (colocated)

    def options(self) -> dict[str, Any]:
        """Returns the options of the actor: only GPUs are reserved, without them all actors share the cores."""
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundle)
        return {"num_cpus": 0, "num_gpus": self.num_gpus, "scheduling_strategy": strategy}


class Placement:
    """The places of a run, as rl/placement/plan.py decides."""

    def __init__(self, config: RLConfig | EvalConfig) -> None:
        """Plans for the nodes that Ray has; raises ValueError where the run does not fit, before anything waits."""
        nodes = list_nodes()
        self.plan = build_plan(nodes, config)
        self._planned = list(self.plan.engines)
        self._engine_tp = config.engine.tp
        self._has_gpus = any(node.gpus for node in nodes)
        self._engines: list[Place] = []
        self._is_closing = Event()
        self._free_ranks = list(self.plan.shared)
        self._trainers: list[Place] = []
        self.trainer_gpus: Sequence[str] = ()
        """What CUDA calls the GPU of each rank of the trainer on its node; set where engines share them."""

    def give_up(self) -> None:
        """Ends the wait for a place, in another thread, within a second: the run ends."""
        self._is_closing.set()

    def reserve_trainers(self) -> list[Place]:
        """Returns a place for each rank of the trainer; raises NoRoom."""
        num_gpus = int(self._has_gpus)
        groups = [(group, self._reserve(group, num_gpus)) for group in self.plan.groups]
        self._trainers = [
            Place(address=address, num_gpus=num_gpus, group=reserved, bundle=bundle)
            for addresses, reserved in groups
            for bundle, address in enumerate(addresses)
        ]
        return self._trainers

    def reserve_engine(self) -> Place:
        """Returns a place for the next engine: the planned one or, for those that replace others, a free one.

        Raises:
            NoRoom: no node that is left has room, or the run ends.
        """
        if self.plan.shared:
            return self._share_place()
        running = [place.address for place in list(self._engines)]  # another thread may release some
        nodes = list_nodes()
        if self._planned:
            address = self._planned.pop(0)
        else:
            address = place_engine(nodes, self.plan.trainers, running, self._engine_tp)
        if address is None:
            raise NoRoom(
                f"no node has engine.tp={self._engine_tp} free GPUs for another engine: {_list(nodes)}, with trainers "
                f"on {', '.join(dict.fromkeys(self.plan.trainers))} and engines on {', '.join(running) or 'none'}"
            )
        num_gpus = self._engine_tp if self._has_gpus else 0
        place = Place(address=address, num_gpus=num_gpus, group=self._reserve([address], num_gpus), bundle=0)
        self._engines.append(place)
        return place

    def release_engine(self, place: Place) -> None:
        """Gives the place of an engine back; an actor that still is there ends, unless a trainer has the place, too."""
        if place.ranks:
            self._free_ranks.append(place.ranks)
            return
        self._engines.remove(place)
        remove_placement_group(place.group)

    def _reserve(self, addresses: Sequence[str], num_gpus: int) -> PlacementGroup:
        """Returns a placement group with a bundle on each of these nodes."""
        gpus = {"GPU": num_gpus} if num_gpus else {}
        group = placement_group([{f"node:{address}": 0.001, **gpus} for address in addresses])
        deadline = time.monotonic() + WAIT_SECONDS
        while not group.wait(max(0.0, min(LOOK_SECONDS, deadline - time.monotonic()))):
            if self._is_closing.is_set() or time.monotonic() >= deadline:
                remove_placement_group(group)
                raise NoRoom(
                    f"Ray gave no place with {num_gpus} GPUs on {', '.join(set(addresses))} within {WAIT_SECONDS:g} s; "
                    f"nodes that are alive: {_list(list_nodes())}. Another job of this Ray cluster may hold the GPUs"
                )
        return group

    def _share_place(self) -> Place:
        """Returns the place of ranks of the trainer, with their GPUs, of which Ray counts none for the engine."""
        alive = {node.address for node in list_nodes()}
        free = [ranks for ranks in self._free_ranks if self._trainers[ranks[0]].address in alive]
        if not free:
            raise NoRoom("no node that is left has ranks of the trainer whose place an engine could share")
        self._free_ranks.remove(free[0])
        env = {}
        if self._has_gpus:
            gpus = ",".join(self.trainer_gpus[rank] for rank in free[0])
            env = {"CUDA_VISIBLE_DEVICES": gpus, "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
        return replace(self._trainers[free[0][0]], num_gpus=0, env=env, ranks=free[0])


def list_nodes() -> list[Node]:
    """Returns the nodes that are alive: the driver's first."""
    here = ray.util.get_node_ip_address()
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [
        Node(address=node["NodeManagerAddress"], gpus=int(node["Resources"].get("GPU", 0))) for node in alive
    ]
    return sorted(
        nodes, key=lambda node: (node.address != here, [part.zfill(3) for part in node.address.split(".")])
    )


def _list(nodes: Sequence[Node]) -> str:
    return ", ".join(f"{node.address} with {node.gpus} GPUs" for node in nodes)
