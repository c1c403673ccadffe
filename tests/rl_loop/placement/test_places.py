"""Real Ray with GPUs that it only counts: each process gets its own, and a lost place is given again."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import ray_constants

from data_pipeline.ray_session import stop_ray
from rl.placement import places
from rl.placement.actors import choose_actor
from rl.placement.network import find_interface, open_store
from rl.placement.places import Place, Placement
from rl.rollout.calls import NoRoom
from tests.rl_loop.placement.test_plan import make_config


@pytest.fixture
def six_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # stays on the loopback
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # as start_ray; Ray keeps the first
    ray.init(
        address="local",
        num_gpus=6,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=80 << 20,
    )
    yield
    stop_ray()


class Process:
    def gpus(self) -> list[str]:
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")


def start(place: Place) -> Any:
    return ray.remote(Process).options(**place.options()).remote()


@pytest.mark.heavy
def test_processes_get_gpus_of_their_own(six_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="need 8 GPUs, and Ray sees 6: 6 on 127.0.0.1; lower one or add nodes"
    ):
        Placement(make_config(trainers=2, engines=3, engine_tp=2))
    placement = Placement(make_config(trainers=2, tp=2, engines=2, engine_tp=2))
    trainers = [start(place) for place in placement.reserve_trainers()]
    reserved = [placement.reserve_engine() for _ in range(2)]
    engines = [start(place) for place in reserved]
    seen = ray.get([process.gpus.remote() for process in trainers + engines])
    assert [len(gpus) for gpus in seen] == [1, 1, 2, 2]
    assert sorted(gpu for gpus in seen for gpu in gpus) == list("012345")

    with pytest.raises(
        NoRoom, match=r"no node has engine.tp=2 free GPUs .*127.0.0.1 with 6 GPUs, with trainers on"
    ):
        placement.reserve_engine()
    placement.release_engine(reserved[0])  # ends the engine, too
    again_at = placement.reserve_engine()
    again = start(again_at)
    assert ray.get(again.gpus.remote()) == seen[2]

    monkeypatch.setattr(places, "WAIT_SECONDS", 0.5)
    other_run = Placement(make_config(trainers=1, engines=1))
    with pytest.raises(NoRoom, match="no place with 1 GPUs on 127.0.0.1 within 0.5 s.*Another job"):
        other_run.reserve_trainers()
    monkeypatch.setattr(places, "WAIT_SECONDS", 60.0)
    placement.release_engine(again_at)
    share_gpus()


def share_gpus() -> None:
    """A colocated engine has the GPUs of its ranks of the trainer, of which Ray counts none twice."""
    placement = Placement(make_config(trainers=2, engines=1, engine_tp=2, placement="colocated"))
    trainers = [start(place) for place in placement.reserve_trainers()]
    owned = [gpu for gpus in ray.get([process.gpus.remote() for process in trainers]) for gpu in gpus]
    placement.trainer_gpus = owned
    place = placement.reserve_engine()
    assert ray.get(choose_actor(Process, place).remote().gpus.remote()) == owned
    with pytest.raises(NoRoom, match="whose place an engine could share"):
        placement.reserve_engine()
    placement.release_engine(place)
    assert placement.reserve_engine() == place
    assert ray.get(trainers[0].gpus.remote()) == owned[:1], "the trainers stay"


def test_store_is_reached_by_its_address_alone() -> None:
    from torch.distributed import TCPStore

    store, address = open_store("127.0.0.1")
    port = int(address.rpartition(":")[2])
    TCPStore("127.0.0.1", port, is_master=False).set("step", "3")
    assert store.get("step") == b"3" and address == f"tcp://127.0.0.1:{port}"
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table.splitlines()]
    assert [row[1] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"] == [
        f"0100007F:{port:04X}"
    ]


def test_interface_is_the_one_that_has_the_address() -> None:
    assert find_interface("127.0.0.1") == "lo"
    with pytest.raises(
        ValueError, match=r"no network interface of .* has the address 192\.0\.2\.1 .*--node-ip-address"
    ):
        find_interface("192.0.2.1")
