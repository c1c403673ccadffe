"""Where the processes of a run meet, and through which network interface."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from torch.distributed import TCPStore

LOOPBACK = "127.0.0.1"
STORE_TIMEOUT = timedelta(minutes=5)
"""Limit of a look-up in the store of the process that opened it."""


def open_store(address: str) -> tuple[TCPStore, str]:
    """Opens torch's key-value store in this process, at `address` alone; returns it, and where others reach it.

    It must be kept: with the object the store ends. Processes that join it by the address must not try to open it
    themselves, see `join_network`.
    """
    from torch.distributed import TCPStore

    listener = socket.create_server((address, 0), backlog=1024)
    port = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=STORE_TIMEOUT,
        master_listen_fd=listener.detach(),  # torch's own would listen on all interfaces
    )
    return store, f"tcp://{address}:{port}"


def join_network(address: str) -> None:
    """Makes torch's process groups of this process use the interface of `address`, and the store of open_store.

    An interface that the user chose by GLOO_SOCKET_IFNAME stays. Unset, gloo takes what the host's name leads to, which
    on many machines is the loopback: then the others fail, or wait.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", find_interface(address))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # rank 0 joins the store, too, instead of opening one


def find_interface(address: str) -> str:
    """Returns the name of the network interface that has `address`: "lo" of 127.0.0.1.

    Raises:
        ValueError: no interface of this machine has it.
    """
    found = {entry.address: name for name, entries in psutil.net_if_addrs().items() for entry in entries}
    if address not in found:
        raise ValueError(
            f"no network interface of {socket.gethostname()} has the address {address} by which Ray knows it; "
            "start Ray with --node-ip-address of one that other nodes reach"
        )
    return found[address]
