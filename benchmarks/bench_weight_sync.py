"""Weight transfer to one receiver against a plain copy of memory and a plain TCP socket, by the model's size.

Sender and receiver are two processes. A transfer writes every tensor into buckets with a checksum, and the receiver
checks each bucket and copies its tensors into memory of its own, as an engine into its model; vLLM's own work is not
measured. The copy is of the same tensors, in one process; the socket sends as many bytes from one ready buffer into
another. Time is wall time, from the start to the receiver's word that it has all; in that time an engine generates
nothing. Rounds alternate between the ways, and the best of each counts: other work on the machine can only slow it.
Processor time of each end, in copies, says what an idle machine can reach.
"""

from __future__ import annotations

import multiprocessing as mp
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import write_result
from megatron_omr.convert.hf_tensor import HfTensor
from rl.weight_sync.collective import CollectivePlace, CollectiveReader, CollectiveSender
from rl.weight_sync.layout import Layout, lay_out
from rl.weight_sync.shared_memory import SharedMemoryReader, SharedMemorySender, SharedPlace

SIZES = {"1M": (128, 3, 2_000), "10M": (384, 4, 2_000), "100M": (1024, 5, 16_000), "1B": (2560, 9, 24_000)}
"""Hidden size, layers and vocabulary for so many parameters."""
ROUNDS = {"1M": 20, "10M": 20, "100M": 10, "1B": 4}
HOST = "127.0.0.1"
SOCKET_BYTES = 16 * 2**20  # a call


def main() -> dict[str, object]:
    """Measures, prints and writes benchmarks/results/weight_sync.json; returns its content."""
    torch.set_num_threads(1)
    sizes = {size: measure(transformer_weights(*SIZES[size]), ROUNDS[size]) for size in SIZES}
    for size, found in sizes.items():
        print(size, "  ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    result: dict[str, object] = {"unit": "GB/s", "sizes": sizes}
    write_result("weight_sync", result)
    return result


def measure(source: dict[str, Tensor], rounds: int) -> dict[str, float]:
    """Returns the best GB/s of each way, what the transfers cost in copies, and the seconds that an engine waits."""
    target = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    num_bytes = sum(tensor.nbytes for tensor in source.values())
    layout = describe(source)
    pipe, end = mp.Pipe()
    process = mp.get_context("spawn").Process(target=serve, args=(end, layout), daemon=True)
    process.start()
    with (
        closing(SharedMemorySender(layout, timeout=60)) as shared,
        closing(CollectiveSender(layout, host=HOST, timeout=60)) as collective,
        socket.create_server((HOST, 0)) as server,
    ):
        pipe.send((shared.place, collective.place, server.getsockname()[1], num_bytes))
        collective.join(1, 2)
        connection, _ = server.accept()
        buffer = memoryview(bytearray(SOCKET_BYTES))
        expect(pipe)
        versions = iter(range(1, 10_000))
        ways: dict[str, Callable[[int], object]] = {
            "shared_memory": lambda version: shared.send(source.items(), version),
            "collective": lambda version: collective.send(source.items(), version),
            "socket": lambda version: send_bytes(connection, buffer, num_bytes),
        }
        times: dict[str, list[float]] = {"copy": [], **{way: [] for way in ways}}
        sending: list[float] = []
        receiving: list[float] = []
        copying: list[float] = []
        for _ in range(rounds + 1):
            start = process_time()
            times["copy"].append(spent(lambda: copy(source, target)))
            copying.append(process_time() - start)
            for way, send in ways.items():
                version = next(versions)
                pipe.send((way, version))
                expect(pipe)  # it is about to receive
                start, begun = perf_counter(), process_time()
                send(version)
                ended, used = process_time(), expect(pipe)
                times[way].append(perf_counter() - start)
                if way == "shared_memory":
                    sending.append(ended - begun)
                    receiving.append(used)
        pipe.send(None)
        digest = pipe.recv()
        process.join()
        connection.close()
    assert digest == [checksum(tensor) for tensor in source.values()], "the receiver has other weights"
    seconds = {
        way: min(found[1:]) for way, found in times.items()
    }  # the first round takes the pages of the memory
    return {
        "megabytes": num_bytes / 1e6,
        **{way: num_bytes / time / 1e9 for way, time in seconds.items()},
        "copies per shared_memory sync": seconds["shared_memory"] / seconds["copy"],
        "copies of processor time to send": min(sending[1:]) / min(copying[1:]),
        "copies of processor time to receive": min(receiving[1:]) / min(copying[1:]),
        "collective / socket": seconds["socket"] / seconds["collective"],
        **{f"seconds an engine waits, {way}": seconds[way] for way in ("shared_memory", "collective")},
        "first shared_memory sync, seconds": times["shared_memory"][0],
    }


def serve(pipe: Connection, layout: Layout) -> None:
    """Receives as an engine process does, without vLLM: copies every tensor into memory of its own."""
    torch.set_num_threads(1)
    places: tuple[SharedPlace, CollectivePlace, int, int] = pipe.recv()
    shared_place, collective_place, port, num_bytes = places
    group = replace(collective_place, generation=1, num_ranks=2, first_rank=1)
    target = {name: tensor.clone() for name, tensor in empty(layout).items()}
    buffer = memoryview(bytearray(SOCKET_BYTES))
    with (
        closing(CollectiveReader(group, rank=0)) as collective,
        closing(SharedMemoryReader(shared_place)) as shared,
    ):
        connection = socket.create_connection((HOST, port))
        pipe.send(0.0)
        readers = {"shared_memory": shared, "collective": collective}
        while (told := pipe.recv()) is not None:
            way, version = told
            pipe.send(0.0)  # about to receive
            start = process_time()
            if way == "socket":
                receive_bytes(connection, buffer, num_bytes)
            else:
                for name, tensor in readers[way].receive(version):
                    target[name].copy_(tensor)
                readers[way].confirm(version)
            pipe.send(process_time() - start)
        pipe.send([checksum(tensor) for tensor in target.values()])
        connection.close()


def describe(source: dict[str, Tensor]) -> Layout:
    return lay_out(
        [HfTensor(name=name, shape=tuple(t.shape), precision="bf16") for name, t in source.items()]
    )


def empty(layout: Layout) -> dict[str, Tensor]:
    return {tensor.name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for tensor in layout.tensors}


def transformer_weights(hidden: int, layers: int, vocabulary: int) -> dict[str, Tensor]:
    """Returns random bf16 tensors in the shapes of a transformer: large matrices and many small vectors."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (vocabulary, hidden)}
    for layer in range(layers):
        shapes |= {f"{layer}.qkv": (3 * hidden, hidden), f"{layer}.o": (hidden, hidden)}
        shapes |= {f"{layer}.{name}": (4 * hidden, hidden) for name in ("gate", "up")}
        shapes |= {f"{layer}.down": (hidden, 4 * hidden)}
        shapes |= {f"{layer}.{name}": (hidden,) for name in ("norm1", "norm2", "bias")}
    bits = {
        name: torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16)
        for name, shape in shapes.items()
    }
    return {name: tensor.view(torch.bfloat16) for name, tensor in bits.items()}


def copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)


def checksum(tensor: Tensor) -> int:
    return int(tensor.view(torch.int16).sum(dtype=torch.int64))


def send_bytes(connection: socket.socket, buffer: memoryview, num_bytes: int) -> None:
    for start in range(0, num_bytes, len(buffer)):
        connection.sendall(buffer[: num_bytes - start])


def receive_bytes(connection: socket.socket, buffer: memoryview, num_bytes: int) -> None:
    while num_bytes > 0:
        num_bytes -= connection.recv_into(buffer[:num_bytes])


def expect(pipe: Any) -> float:
    """Waits for the receiver's next word, and returns the processor time that it spent on what it was told."""
    assert pipe.poll(120), "the receiver says nothing"
    return pipe.recv()


def spent(run: Callable[[], object]) -> float:
    """Returns the seconds of wall time."""
    start = perf_counter()
    run()
    return perf_counter() - start


if __name__ == "__main__":
    main()
