"""Decides which node gets which process of a run, before any is started (pure: no Ray).

Ranks of a TP x CP group of the trainer follow each other, and stay on one node where they fit; else the group is cut
into as few equal parts as possible. An engine's GPUs are those of one node. Without any GPU nothing is counted: the
trainers are on the first node, and the engines on the others, if there are others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from rl.config import EngineConfig, EvalConfig, RLConfig


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster."""

    address: str
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The node of each process, by address."""

    trainers: tuple[str, ...]  # by rank
    engines: tuple[str, ...]
    group_size: int
    shared: tuple[
        tuple[int, ...], ...
    ] = ()  # colocated: the ranks of the trainer whose GPUs each engine takes

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The nodes of the ranks of each TP x CP group."""
        ranks = iter(self.trainers)
        return list(iter(lambda: tuple(islice(ranks, self.group_size)), ()))

    def describe(self) -> str:
        """Returns the line that says how many trainers and engines each node has."""
        counts = {"trainers": Counter(self.trainers), "engines": Counter(self.engines)}
        shown = {
            node: ", ".join(f"{count[node]} {name}" for name, count in counts.items() if count[node])
            for node in [*self.trainers, *self.engines]
        }
        return "; ".join(f"{node}: {text}" for node, text in shown.items())


def build_plan(nodes: Sequence[Node], config: RLConfig | EvalConfig) -> Plan:
    """Returns where the processes of `config` go; an evaluation has engines alone.

    Args:
        nodes: the driver's node first.

    Raises:
        ValueError: they do not fit; says which field is too large, and what each node has.
    """
    if isinstance(config, EvalConfig):
        return Plan(trainers=(), engines=_place_engines(nodes, (), config.engine), group_size=1)
    group_size = config.parallel.tp * config.parallel.cp
    if any(node.gpus for node in nodes):
        _check_total(nodes, config)
        trainers = tuple(_place_trainers(nodes, config))
    else:
        trainers = (nodes[0].address,) * config.trainers
    if config.rollout.placement == "colocated":
        shared = share_trainers(trainers, config)
        engines = tuple(trainers[first] for first, *_ in shared)
        return Plan(trainers=trainers, engines=engines, group_size=group_size, shared=shared)
    engines = _place_engines(nodes, trainers, config.engine)
    return Plan(trainers=trainers, engines=engines, group_size=group_size)


def _place_engines(nodes: Sequence[Node], trainers: Sequence[str], engine: EngineConfig) -> tuple[str, ...]:
    engines: list[str] = []
    while len(engines) < engine.num_engines:
        address = place_engine(nodes, trainers, engines, engine.tp)
        if address is None:
            raise ValueError(
                f"each of engine.num_engines={engine.num_engines} needs engine.tp={engine.tp} free GPUs on one node; "
                f"beside trainers={len(trainers)}, {len(engines)} fit, and there are left: "
                f"{_list(_count_free(nodes, trainers, engines, engine.tp))}; lower engine.num_engines or engine.tp"
            )
        engines.append(address)
    return tuple(engines)


def share_trainers(trainers: Sequence[str], config: RLConfig) -> tuple[tuple[int, ...], ...]:
    """Returns for each engine the ranks of the trainer whose GPUs it takes: engine.tp that follow each other on a node.

    Raises:
        ValueError: there are too few.
    """
    tp, wanted = config.engine.tp, config.engine.num_engines
    ranks: dict[str, list[int]] = {}
    for rank, address in enumerate(trainers):
        ranks.setdefault(address, []).append(rank)
    found = [
        tuple(here[first : first + tp])
        for here in ranks.values()
        for first in range(0, len(here) - tp + 1, tp)
    ]
    if len(found) < wanted:
        raise ValueError(
            f"rollout.placement=colocated: engine.num_engines={wanted} of engine.tp={tp} take GPUs of the trainer, and "
            f"trainers={config.trainers} have room for {len(found)} on {len(ranks)} nodes; lower one or raise trainers"
        )
    return tuple(found[:wanted])


def place_engine(
    nodes: Sequence[Node], trainers: Sequence[str], engines: Sequence[str], engine_tp: int
) -> str | None:
    """Returns the node for one more engine beside these trainers and engines; None where none has room."""
    if any(node.gpus for node in nodes):
        return _find_fullest(_count_free(nodes, trainers, engines, engine_tp), engine_tp)
    running = Counter(engines)
    addresses = [node.address for node in nodes]
    others = [address for address in addresses if address not in trainers]
    return min(others or addresses, key=lambda address: running[address], default=None)


def _place_trainers(nodes: Sequence[Node], config: RLConfig) -> list[str]:
    tp, cp = config.parallel.tp, config.parallel.cp
    free = {node.address: node.gpus for node in nodes}
    chosen: list[str] = []
    while len(chosen) < config.trainers:
        group = _place_group(free, tp=tp, cp=cp)
        chosen += group
        free = {address: gpus - group.count(address) for address, gpus in free.items()}
    return chosen


def _place_group(free: Mapping[str, int], *, tp: int, cp: int) -> list[str]:
    """Returns the nodes of a group's ranks: one node, or as few equal parts as possible."""
    for part in _part_sizes(tp, cp):
        left, chosen = dict(free), list[str]()
        while len(chosen) < tp * cp and (address := _find_fullest(left, part)) is not None:
            chosen += [address] * part
            left[address] -= part
        if len(chosen) == tp * cp:
            return chosen
    raise AssertionError(f"too few GPUs in all, which was checked before: {free}")


def _part_sizes(tp: int, cp: int) -> Iterator[int]:
    """Yields the sizes of the equal parts that a group may be cut into, largest first: tensor-parallel ranks last."""
    yield from (tp * size for size in range(cp, 0, -1) if cp % size == 0)
    yield from (size for size in range(tp - 1, 0, -1) if tp % size == 0)


def _find_fullest(free: Mapping[str, int], wanted: int) -> str | None:
    """Returns the node with the fewest free GPUs of those with enough: others keep room for larger groups."""
    fitting = [address for address, gpus in free.items() if gpus >= wanted]
    return min(fitting, key=lambda address: free[address], default=None)


def _count_free(
    nodes: Sequence[Node], trainers: Sequence[str], engines: Sequence[str], engine_tp: int
) -> dict[str, int]:
    taken = Counter(trainers)
    taken.update([address for address in engines for _ in range(engine_tp)])
    return {node.address: node.gpus - taken[node.address] for node in nodes}


def _check_total(nodes: Sequence[Node], config: RLConfig) -> None:
    engine, seen = config.engine, {node.address: node.gpus for node in nodes}
    if config.rollout.placement == "colocated":
        _check_trainers(config, seen)
        return
    wanted = config.trainers + engine.num_engines * engine.tp
    if wanted > sum(seen.values()):
        raise ValueError(
            f"trainers={config.trainers} and engine.num_engines={engine.num_engines} x engine.tp={engine.tp} need "
            f"{wanted} GPUs, and Ray sees {sum(seen.values())}: {_list(seen)}; lower one or add nodes"
        )


def _check_trainers(config: RLConfig, seen: Mapping[str, int]) -> None:
    if config.trainers > sum(seen.values()):
        raise ValueError(
            f"trainers={config.trainers} need as many GPUs, and Ray sees {sum(seen.values())}: {_list(seen)}; lower it "
            "or add nodes"
        )


def _list(gpus: Mapping[str, int]) -> str:
    return ", ".join(f"{count} on {address}" for address, count in gpus.items())
